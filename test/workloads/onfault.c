/*
 * Memory that is locked as it is touched (mlock2, MLOCK_ONFAULT): 1 GiB of which a few pages are there. A move must neither
 * fill it nor forget that it is locked.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "workload.h"

#define NR_PAGES ((size_t)262144)
#define NR_TOUCHED 16
/* Some hosts allow ordinary users 8 MiB of locked memory. */
#define NR_PAGES_OF_A_USER ((size_t)1024)

static long status_kib(const char *name)
{
	char line[256];
	long kib = -1;
	FILE *status = fopen("/proc/self/status", "r");

	while (status != NULL && fgets(line, sizeof(line), status) != NULL)
		if (strncmp(line, name, strlen(name)) == 0)
			sscanf(line + strlen(name), ": %ld", &kib);
	if (status != NULL)
		fclose(status);
	return kib;
}

int main(int argc, char **argv)
{
	size_t nr_pages = geteuid() == 0 ? NR_PAGES : NR_PAGES_OF_A_USER;
	size_t apart = nr_pages / NR_TOUCHED;
	size_t touched = NR_TOUCHED;
	long locked, resident;
	char *area;

	work_begin(argc, argv);
	area = MUST(mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(mlock2(area, nr_pages * PAGE, MLOCK_ONFAULT));
	for (size_t i = 0; i < NR_TOUCHED; i++)
		stamp_page(area + i * apart * PAGE, i + 1);
	locked = status_kib("VmLck");
	resident = status_kib("VmRSS");
	CHECK(locked >= (long)(nr_pages * PAGE / 1024), "only %ld KiB are locked", locked);
	while (work_step(5 * MS)) {
		unsigned char there = 1;

		CHECK(status_kib("VmLck") == locked, "%ld KiB are locked, not %ld", status_kib("VmLck"), locked);
		CHECK(status_kib("VmRSS") < resident + 4096, "%ld KiB are resident", status_kib("VmRSS"));
		MUST(mincore(area + (apart - 1) * PAGE, PAGE, &there));
		CHECK((there & 1) == 0, "a page that was never touched is there");
		for (size_t i = 0; i < NR_TOUCHED; i++)
			CHECK(check_page(area + i * apart * PAGE, i + 1) < 0, "page %zu is wrong", i);
		/* Still possible, and locked as soon as it is there. */
		if (touched < 2 * NR_TOUCHED)
			stamp_page(area + (touched++ - NR_TOUCHED) * apart * PAGE + 2 * PAGE, 99);
	}
	work_done();
}

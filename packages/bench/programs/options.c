#include "probe.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"usage: probe --result FILE [--size MiB] [--pattern sequential|uniform|zipf|stride|chase|shift]\n"
	"             [--threads N] [--write-ratio 0..1] [--think-us N] [--dirty-rate PAGES/s] [--seed N]\n"
	"             [--redundancy 0..1] [--stall-ns N] [--now] [--work] [--corrupt PAGE]\n";

static _Noreturn void wrong(const char *option)
{
	fprintf(stderr, "probe: wrong or missing value: --%s\n%s", option, usage);
	exit(2);
}

static uint64_t number(const char *option, const char *text, uint64_t smallest, uint64_t largest)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || value < smallest || value > largest)
		wrong(option);
	return value;
}

static enum pattern pattern_named(const char *name)
{
	for (enum pattern pattern = 0; pattern < NR_PATTERNS; pattern++)
		if (strcmp(name, pattern_names[pattern]) == 0)
			return pattern;
	wrong("pattern");
}

static double ratio(const char *option, const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (*text == '\0' || *end != '\0' || !(value >= 0 && value <= 1))
		wrong(option);
	return value;
}

void options_parse(struct options *options, int argc, char **argv)
{
	static const struct option known[] = {
		{ "result", required_argument, NULL, 'r' },	 { "size", required_argument, NULL, 's' },
		{ "pattern", required_argument, NULL, 'p' },	 { "threads", required_argument, NULL, 't' },
		{ "write-ratio", required_argument, NULL, 'w' }, { "think-us", required_argument, NULL, 'k' },
		{ "dirty-rate", required_argument, NULL, 'd' },	 { "seed", required_argument, NULL, 'e' },
		{ "now", no_argument, NULL, 'n' },		 { "work", no_argument, NULL, 'o' },
		{ "redundancy", required_argument, NULL, 'u' },
		{ "corrupt", required_argument, NULL, 'c' },	 { "stall-ns", required_argument, NULL, 'l' },
		{ NULL, 0, NULL, 0 },
	};

	*options = (struct options){ .threads = 1, .size_mib = 64, .stall_threshold_ns = DEFAULT_STALL_NS,
				     .corrupt = UINT64_MAX };
	options->plan = (struct plan){ .pattern = UNIFORM, .seed = 1, .noise_words = PAGE_WORDS };
	for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
		switch (option) {
		case 'r': options->result = optarg; break;
		case 's': options->size_mib = number("size", optarg, 1, 1 << 20); break;
		case 'p': options->plan.pattern = pattern_named(optarg); break;
		case 't': options->threads = number("threads", optarg, 1, MAX_THREADS); break;
		case 'w': options->plan.write_ratio = (uint64_t)(ratio("write-ratio", optarg) * 0x1p32); break;
		case 'u': options->plan.noise_words = (uint64_t)((1 - ratio("redundancy", optarg)) * PAGE_WORDS); break;
		case 'k': options->think_ns = number("think-us", optarg, 0, 60000000) * US; break;
		case 'l': options->stall_threshold_ns = number("stall-ns", optarg, 1, 1000 * MS); break;
		case 'd': options->dirty_rate = number("dirty-rate", optarg, 0, 100000000); break;
		case 'e': options->plan.seed = number("seed", optarg, 0, UINT32_MAX); break;
		case 'n': options->now = true; break;
		case 'o': options->work = true; break;
		case 'c': options->corrupt = number("corrupt", optarg, 0, UINT64_MAX - 1); break;
		default: fputs(usage, stderr); exit(2);
		}
	}
	if (options->result == NULL || optind != argc)
		wrong("result");
	options->plan.nr_pages = options->size_mib * 256;
	if (options->corrupt != UINT64_MAX && options->corrupt >= options->plan.nr_pages)
		wrong("corrupt");
}

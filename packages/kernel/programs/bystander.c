/*
 * A process that does nothing, of a given user and without any capability. Every process of that user may inspect it, unless
 * a security module (Landlock) forbids that. So the dump service finds out whether a workload is confined.
 *
 * It has nothing of the service: no memory, keyring or group, and no descriptor but standard output, which it closes at the
 * end. It dies with its parent. Its user may trace it, so limits keep it from doing anything else.
 *
 *     bystander UID GID
 */
#define _GNU_SOURCE
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEYCTL_JOIN_SESSION_KEYRING 1

int main(int argc, char **argv)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct none[2] = { 0 };
	pid_t parent = getppid();
	uid_t uid;
	gid_t gid;

	static const struct {
		int resource;
		struct rlimit limit;
	} limits[] = {
		{ RLIMIT_CPU, { 1, 1 } },
		{ RLIMIT_NPROC, { 0, 0 } },
		{ RLIMIT_FSIZE, { 0, 0 } },
		{ RLIMIT_NOFILE, { 0, 0 } },
		{ RLIMIT_AS, { 1 << 24, 1 << 24 } },
	};

	if (argc != 3)
		return 2;
	uid = strtoul(argv[1], NULL, 10);
	gid = strtoul(argv[2], NULL, 10);
	/* A kernel without keyrings needs no such call. */
	syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
	if (getgroups(0, NULL) > 0 && setgroups(0, NULL) != 0)
		return 1;
	for (size_t i = 0; i < sizeof(limits) / sizeof(*limits); i++)
		setrlimit(limits[i].resource, &limits[i].limit);
	if (setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0)
		return 1;
	if (syscall(SYS_capset, &header, none) != 0)
		return 1;
	/* The change of ids has reset both (prctl(2)). */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0 || prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
		return 1;
	if (getppid() != parent || write(1, "U", 1) != 1)
		return 1;
	close(1);
	for (;;)
		pause();
}

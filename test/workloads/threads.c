/*
 * Threads with everything that belongs to a thread: values kept in vector, x87 and general registers for a long time,
 * thread-local storage, mutexes and condition variables between them, robust mutexes whose owners die, and threads that
 * are born and end all the time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "workload.h"

#define NR_SPINNERS 2
#define NR_PLAYERS 4

static atomic_bool stopping;
static atomic_ulong nr_born, nr_spins, nr_passes, nr_deaths;
static __thread uint64_t local_value = 0x1234567887654321;
static __thread char local_array[3000];

/* All vector registers hold a pattern while nothing but a counter changes; afterwards they must still hold it. */

static void spin_avx(const uint8_t in[16][32], uint8_t out[16][32], uint64_t turns)
{
	__asm__ volatile(
		"vmovdqu (%[in]), %%ymm0; vmovdqu 32(%[in]), %%ymm1; vmovdqu 64(%[in]), %%ymm2; vmovdqu 96(%[in]), %%ymm3\n"
		"vmovdqu 128(%[in]), %%ymm4; vmovdqu 160(%[in]), %%ymm5; vmovdqu 192(%[in]), %%ymm6; vmovdqu 224(%[in]), %%ymm7\n"
		"vmovdqu 256(%[in]), %%ymm8; vmovdqu 288(%[in]), %%ymm9; vmovdqu 320(%[in]), %%ymm10; vmovdqu 352(%[in]), %%ymm11\n"
		"vmovdqu 384(%[in]), %%ymm12; vmovdqu 416(%[in]), %%ymm13; vmovdqu 448(%[in]), %%ymm14; vmovdqu 480(%[in]), %%ymm15\n"
		"1: dec %[turns]; jnz 1b\n"
		"vmovdqu %%ymm0, (%[out]); vmovdqu %%ymm1, 32(%[out]); vmovdqu %%ymm2, 64(%[out]); vmovdqu %%ymm3, 96(%[out])\n"
		"vmovdqu %%ymm4, 128(%[out]); vmovdqu %%ymm5, 160(%[out]); vmovdqu %%ymm6, 192(%[out]); vmovdqu %%ymm7, 224(%[out])\n"
		"vmovdqu %%ymm8, 256(%[out]); vmovdqu %%ymm9, 288(%[out]); vmovdqu %%ymm10, 320(%[out]); vmovdqu %%ymm11, 352(%[out])\n"
		"vmovdqu %%ymm12, 384(%[out]); vmovdqu %%ymm13, 416(%[out]); vmovdqu %%ymm14, 448(%[out]); vmovdqu %%ymm15, 480(%[out])\n"
		: [turns] "+r"(turns)
		: [in] "r"(in), [out] "r"(out)
		: "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
		  "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void spin_avx512(const uint8_t in[4][64], uint8_t out[4][64], uint64_t mask_in, uint64_t *mask_out, uint64_t turns)
{
	__asm__ volatile("vmovdqu64 (%[in]), %%zmm0; vmovdqu64 64(%[in]), %%zmm15\n"
			 "vmovdqu64 128(%[in]), %%zmm16; vmovdqu64 192(%[in]), %%zmm31; kmovq %[mask], %%k5\n"
			 "1: dec %[turns]; jnz 1b\n"
			 "vmovdqu64 %%zmm0, (%[out]); vmovdqu64 %%zmm15, 64(%[out])\n"
			 "vmovdqu64 %%zmm16, 128(%[out]); vmovdqu64 %%zmm31, 192(%[out]); kmovq %%k5, (%[mask_out])\n"
			 : [turns] "+r"(turns)
			 : [in] "r"(in), [out] "r"(out), [mask] "r"(mask_in), [mask_out] "r"(mask_out)
			 : "memory", "cc", "xmm0", "xmm15");
}

static void spin_sse(const uint8_t in[16], uint8_t out[16], uint64_t turns)
{
	__asm__ volatile("movdqu (%[in]), %%xmm14\n"
			 "1: dec %[turns]; jnz 1b\n"
			 "movdqu %%xmm14, (%[out])\n"
			 : [turns] "+r"(turns)
			 : [in] "r"(in), [out] "r"(out)
			 : "memory", "cc", "xmm14");
}

/* 1 + 2/3 stays on the x87 stack, which is 80 bits wide: a double would not hold it. */
static long double spin_x87(uint64_t turns)
{
	long double kept = 1.0L + 2.0L / 3.0L;

	__asm__ volatile("1: dec %[turns]; jnz 1b" : [turns] "+r"(turns), "+t"(kept) : : "cc");
	return kept;
}

static void *spin(void *argument)
{
	uint64_t random = random_state(10 + (uintptr_t)argument);
	uint8_t in[16][32], out[16][32], wide[4][64], wide_out[4][64], narrow[16], result[16];
	bool avx = __builtin_cpu_supports("avx"), avx512 = __builtin_cpu_supports("avx512bw");
	int rounding = (uintptr_t)argument % 2 == 0 ? FE_UPWARD : FE_TOWARDZERO;

	/* MXCSR and the x87 control word. */
	fesetround(rounding);
	while (!stopping) {
		uint64_t turns = 1 + random_below(&random, 1000000), mask = next_random(&random), mask_out = 0;

		for (size_t i = 0; i < sizeof in; i++)
			((uint8_t *)in)[i] = next_random(&random);
		for (size_t i = 0; i < sizeof wide; i++)
			((uint8_t *)wide)[i] = next_random(&random);
		memcpy(narrow, in, sizeof narrow);
		if (avx) {
			spin_avx(in, out, turns);
			CHECK(memcmp(in, out, sizeof in) == 0, "an AVX register has changed");
		}
		if (avx512) {
			spin_avx512(wide, wide_out, mask, &mask_out, turns);
			CHECK(memcmp(wide, wide_out, sizeof wide) == 0, "an AVX-512 register has changed");
			CHECK(mask == mask_out, "a mask register is %lx instead of %lx", mask_out, mask);
		}
		spin_sse(narrow, result, turns);
		CHECK(memcmp(narrow, result, sizeof result) == 0, "an SSE register has changed");
		CHECK(spin_x87(turns) == 1.0L + 2.0L / 3.0L, "an x87 register has changed");
		CHECK(fegetround() == rounding, "the rounding mode has changed");
		nr_spins++;
		/* Others want a processor, too: the machine has perhaps two. A third of all moments still hits a spin. */
		pause_ns(random_below(&random, 6 * MS));
	}
	return NULL;
}

/* A ball goes round: one mutex, one condition variable, every player waits for its turn. */

static pthread_mutex_t court = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t passed = PTHREAD_COND_INITIALIZER;
static unsigned long ball;

static void *play(void *argument)
{
	unsigned long me = (uintptr_t)argument;
	uint64_t mine = 0;

	local_value = me;
	memset(local_array, (int)me, sizeof local_array);
	while (!stopping) {
		pthread_mutex_lock(&court);
		while (ball % NR_PLAYERS != me && !stopping)
			pthread_cond_wait(&passed, &court);
		if (!stopping) {
			ball++;
			mine++;
			nr_passes++;
		}
		pthread_cond_broadcast(&passed);
		pthread_mutex_unlock(&court);
		CHECK(local_value == me, "thread-local value of player %lu is %lu", me, local_value);
		for (size_t i = 0; i < sizeof local_array; i += 100)
			CHECK(local_array[i] == (char)me, "thread-local array of player %lu", me);
		pause_ns(200000);
	}
	return (void *)mine;
}

/* Mutexes whose owners end while they hold them. Shared memory, so that the kernel looks at them by their pages. */

struct robust {
	pthread_mutex_t mutex;
	uint64_t count;
};

static struct robust *robust;

static void *die_with_mutex(void *argument)
{
	int error = pthread_mutex_lock(&robust->mutex);

	if (error == EOWNERDEAD) {
		CHECK(pthread_mutex_consistent(&robust->mutex) == 0, "a mutex cannot be made consistent");
	} else
		CHECK(error == 0, "locking a robust mutex: %s", strerror(error));
	robust->count++;
	pause_ns(random_below(&(uint64_t){ now_ns(CLOCK_MONOTONIC) }, 3 * MS));
	return NULL;
}

static void *bury(void *argument)
{
	while (!stopping) {
		uint64_t before = robust->count;
		pthread_t thread;
		int error;

		CHECK(pthread_create(&thread, NULL, die_with_mutex, NULL) == 0, "no thread: %m");
		pthread_join(thread, NULL);
		error = pthread_mutex_lock(&robust->mutex);
		CHECK(error == EOWNERDEAD, "the owner of a robust mutex died: %s", strerror(error));
		CHECK(pthread_mutex_consistent(&robust->mutex) == 0, "a mutex cannot be made consistent");
		CHECK(robust->count == before + 1, "the count is %lu instead of %lu", robust->count, before + 1);
		CHECK(pthread_mutex_unlock(&robust->mutex) == 0, "a robust mutex cannot be unlocked");
		nr_deaths++;
	}
	return NULL;
}

/* Short lives. */

static void *live_shortly(void *argument)
{
	uint64_t random = (uintptr_t)argument | 1;

	CHECK(local_value == 0x1234567887654321, "a new thread begins with the thread-local value %lx", local_value);
	for (size_t i = 0; i < sizeof local_array; i++)
		CHECK(local_array[i] == 0, "a new thread begins with a thread-local array that is not zeros");
	local_value = random;
	if (random_below(&random, 2) == 0)
		pause_ns(random_below(&random, 2 * MS));
	memset(local_array, 1, sizeof local_array);
	return (void *)((uintptr_t)argument * 3);
}

static void *bear(void *argument)
{
	uint64_t random = random_state(20);

	while (!stopping) {
		pthread_t threads[4];
		uintptr_t numbers[4];

		for (int i = 0; i < 4; i++) {
			numbers[i] = next_random(&random) >> 20;
			CHECK(pthread_create(&threads[i], NULL, live_shortly, (void *)numbers[i]) == 0, "no thread: %m");
			nr_born++;
		}
		for (int i = 0; i < 4; i++) {
			void *result;

			CHECK(pthread_join(threads[i], &result) == 0, "a thread cannot be joined");
			CHECK((uintptr_t)result == numbers[i] * 3, "a thread returned %p", result);
		}
		pause_ns(random_below(&random, MS));
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t spinners[NR_SPINNERS], players[NR_PLAYERS], undertaker, mother;
	pthread_mutexattr_t attributes;
	unsigned long sum = 0;

	work_begin(argc, argv);
	robust = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&robust->mutex, &attributes);
	for (uintptr_t i = 0; i < NR_SPINNERS; i++)
		CHECK(pthread_create(&spinners[i], NULL, spin, (void *)i) == 0, "no thread");
	for (uintptr_t i = 0; i < NR_PLAYERS; i++)
		CHECK(pthread_create(&players[i], NULL, play, (void *)i) == 0, "no thread");
	CHECK(pthread_create(&undertaker, NULL, bury, NULL) == 0, "no thread");
	CHECK(pthread_create(&mother, NULL, bear, NULL) == 0, "no thread");
	while (work_step(3 * MS))
		;
	stopping = true;
	pthread_cond_broadcast(&passed);
	for (int i = 0; i < NR_SPINNERS; i++)
		pthread_join(spinners[i], NULL);
	for (int i = 0; i < NR_PLAYERS; i++) {
		void *mine;

		pthread_join(players[i], &mine);
		sum += (uintptr_t)mine;
	}
	pthread_join(undertaker, NULL);
	pthread_join(mother, NULL);
	CHECK(sum == ball && ball == nr_passes, "the ball was passed %lu times, the players say %lu", ball, sum);
	CHECK(nr_born > 0 && nr_spins > 0 && nr_deaths > 0, "nothing happened");
	work_done();
}

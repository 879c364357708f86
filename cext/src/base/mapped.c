#define _GNU_SOURCE
#include "base/mapped.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

static _Thread_local sigjmp_buf *volatile way_out; /* set while this thread loads */
static struct sigaction others;

/* The maps, for a signal handler that takes no lock. A slot is free while `end` is 0; `end` is stored last and
 * cleared first. */
enum { MAPS_MAX = 65536, PAGE_BYTES = 4096 };
static struct slot {
	uintptr_t begin, end;
	int lost;
} slots[MAPS_MAX];
static unsigned slots_used; /* slots from here on were never used */
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;

/* Put memory in the place of a lost part of the file; 1 if the store can be repeated. */
static int replace_lost(uintptr_t at)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, rights = PROT_READ | PROT_WRITE;
	unsigned used = __atomic_load_n(&slots_used, __ATOMIC_ACQUIRE);

	for (unsigned i = 0; i < used; i++) {
		uintptr_t end = __atomic_load_n(&slots[i].end, __ATOMIC_ACQUIRE), begin = slots[i].begin;
		if (at < begin || at >= end)
			continue;
		__atomic_store_n(&slots[i].lost, 1, __ATOMIC_RELEASE); /* before any store goes to that memory */
		if (mmap((void *)begin, end - begin, rights, flags, -1, 0) != MAP_FAILED)
			return 1;
		return mmap((void *)(at / PAGE_BYTES * PAGE_BYTES), PAGE_BYTES, rights, flags, -1, 0) != MAP_FAILED;
	}
	return 0;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	if (way_out) { /* the jump skips the return of the handler, which would unblock the signals again */
		pthread_sigmask(SIG_SETMASK, &((const ucontext_t *)context)->uc_sigmask, NULL);
		siglongjmp(*way_out, 1);
	}
	int before = errno, replaced = replace_lost((uintptr_t)info->si_addr);
	errno = before;
	if (replaced)
		return;
	sigaction(SIGBUS, &others, NULL); /* the fault repeats at once, for the previous handler */
	if (info->si_code <= 0) /* a signal that was sent does not repeat */
		raise(number);
}

static void take_over(void)
{
	struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigemptyset(&ours.sa_mask);
	sigaction(SIGBUS, &ours, &others);
}

void sr_mapped_prepare(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, take_over);
}

int sr_mapped_load(const uint32_t *at, int count, uint32_t *values)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 0)) {
		way_out = NULL;
		return -EIO;
	}
	way_out = &here;
	for (int i = 0; i < count; i++)
		values[i] = __atomic_load_n(&at[i], __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	way_out = NULL;
	return 0;
}

int sr_map_open(struct sr_map *map, int fd, uint64_t bytes)
{
	unsigned slot = 0;
	int rc = 0;

	sr_mapped_prepare();
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (at == MAP_FAILED)
		return -errno;
	pthread_mutex_lock(&slots_lock);
	while (slot < slots_used && slots[slot].end)
		slot++;
	if (slot == MAPS_MAX) {
		rc = -ENFILE;
	} else {
		slots[slot].begin = (uintptr_t)at;
		slots[slot].lost = 0;
		__atomic_store_n(&slots[slot].end, (uintptr_t)at + bytes, __ATOMIC_RELEASE);
		if (slot == slots_used)
			__atomic_store_n(&slots_used, slot + 1, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&slots_lock);
	if (rc)
		munmap(at, bytes);
	else
		*map = (struct sr_map){.at = at, .bytes = bytes, .slot = slot};
	return rc;
}

void sr_map_close(struct sr_map *map)
{
	if (!map->at)
		return;
	pthread_mutex_lock(&slots_lock);
	__atomic_store_n(&slots[map->slot].end, 0, __ATOMIC_RELEASE); /* first: the kernel may reuse the addresses at once */
	pthread_mutex_unlock(&slots_lock);
	munmap(map->at, map->bytes);
	map->at = NULL;
}

int sr_map_lost(const struct sr_map *map)
{
	return map->at && __atomic_load_n(&slots[map->slot].lost, __ATOMIC_ACQUIRE);
}

int sr_map_check(const struct sr_map *map, int fd, uint64_t file_bytes)
{
	struct stat found;

	if (!map->at)
		return 0;
	if (fstat(fd, &found) != 0)
		return -errno;
	if ((uint64_t)found.st_size < file_bytes)
		__atomic_store_n(&slots[map->slot].lost, 1, __ATOMIC_RELEASE);
	return sr_map_lost(map) ? -ESTALE : 0;
}

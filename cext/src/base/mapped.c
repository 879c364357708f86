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

static _Thread_local sigjmp_buf *volatile way_out; /* while this thread loads */
static struct sigaction others;

/* The maps, for a handler that takes no lock.  A slot is free while `end` is 0, which is stored last, and taken back first. */
enum { MAPS_MAX = 65536, PAGE_BYTES = 4096 };
static struct slot {
	uintptr_t begin, end;
	int lost;
} slots[MAPS_MAX];
static unsigned slots_used; /* no slot from here on was ever taken */
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;

/* Memory in the place of what the file has lost: 1 if the store can be done again. */
static int replace_lost(uintptr_t at)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, rights = PROT_READ | PROT_WRITE;
	unsigned used = __atomic_load_n(&slots_used, __ATOMIC_ACQUIRE);

	for (unsigned i = 0; i < used; i++) {
		uintptr_t end = __atomic_load_n(&slots[i].end, __ATOMIC_ACQUIRE), begin = slots[i].begin;
		if (at < begin || at >= end)
			continue;
		__atomic_store_n(&slots[i].lost, 1, __ATOMIC_RELEASE); /* before any store goes there */
		if (mmap((void *)begin, end - begin, rights, flags, -1, 0) != MAP_FAILED)
			return 1;
		return mmap((void *)(at / PAGE_BYTES * PAGE_BYTES), PAGE_BYTES, rights, flags, -1, 0) != MAP_FAILED;
	}
	return 0;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	if (way_out) { /* which does not pass where the signals that are held back meanwhile would be let through again */
		pthread_sigmask(SIG_SETMASK, &((const ucontext_t *)context)->uc_sigmask, NULL);
		siglongjmp(*way_out, 1);
	}
	int before = errno, replaced = replace_lost((uintptr_t)info->si_addr);
	errno = before;
	if (replaced)
		return;
	sigaction(SIGBUS, &others, NULL); /* it comes again at once, to whom it was for before */
	if (info->si_code <= 0) /* but one that was sent does not */
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
	__atomic_store_n(&slots[map->slot].end, 0, __ATOMIC_RELEASE); /* first: others may be given the room at once */
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

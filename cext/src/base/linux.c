/* System calls that Python does not offer. */
#define _GNU_SOURCE
#include "base/siterig.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { ARG_BEGIN_FIELD = 48 }; /* of /proc/PID/stat: where the command line begins; the next one is its end */

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

int sr_punch_hole(int fd, int64_t offset, int64_t bytes)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes) ? -errno : 0;
}

int sr_set_io_flusher(void)
{
	return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) ? -errno : 0;
}

int sr_set_parent_death_signal(int number)
{
	return prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) ? -errno : 0;
}

int sr_forbid_memory_access(void)
{
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -errno : 0;
}

int sr_return_freed_memory(size_t bytes_min, size_t kept_bytes_max, int arenas_max)
{
#ifdef __GLIBC__
	if (!mallopt(M_MMAP_THRESHOLD, (int)bytes_min) || !mallopt(M_TRIM_THRESHOLD, (int)kept_bytes_max) ||
	    !mallopt(M_ARENA_MAX, arenas_max))
		return -EINVAL;
#else /* other allocators return large blocks anyway */
	(void)bytes_min;
	(void)kept_bytes_max;
	(void)arenas_max;
#endif
	return 0;
}

int sr_trim_memory(size_t free_bytes_min)
{
#ifdef __GLIBC__
	if (mallinfo2().fordblks >= free_bytes_min)
		return malloc_trim(0);
#else
	(void)free_bytes_min;
#endif
	return 0;
}

int sr_set_command_line(const char *words, size_t bytes)
{
	char text[2048];
	unsigned long begin, end;
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t got = read(fd, text, sizeof text - 1);
	int error = errno;
	close(fd);
	if (got < 0)
		return -error;
	text[got] = 0;
	char *at = strrchr(text, ')'); /* the name of the program may have any character */
	for (int field = 2; at && field < ARG_BEGIN_FIELD; field++)
		at = strchr(at + 1, ' ');
	if (!at || sscanf(at, "%lu %lu", &begin, &end) != 2 || end <= begin)
		return -EINVAL;
	size_t room = end - begin, kept = bytes < room ? bytes : room - 1;
	memcpy((void *)begin, words, kept);
	memset((char *)begin + kept, 0, room - kept);
	return 0;
}

int sr_mount_fuse(const char *source, const char *target, const char *type, const char *options,
		  int read_only)
{
	return mount(source, target, type, MS_NOSUID | MS_NODEV | (read_only ? MS_RDONLY : 0), options) ? -errno : 0;
}

int sr_unmount(const char *target, int lazily)
{
	return umount2(target, UMOUNT_NOFOLLOW | (lazily ? MNT_DETACH : 0)) ? -errno : 0;
}

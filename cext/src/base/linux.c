/* System calls that Python does not offer. */
#define _GNU_SOURCE
#include "base/siterig.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/prctl.h>

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

int sr_mount_fuse(const char *source, const char *target, const char *type, const char *options,
		  int read_only)
{
	return mount(source, target, type, MS_NOSUID | MS_NODEV | (read_only ? MS_RDONLY : 0), options) ? -errno : 0;
}

int sr_unmount(const char *target, int lazily)
{
	return umount2(target, UMOUNT_NOFOLLOW | (lazily ? MNT_DETACH : 0)) ? -errno : 0;
}

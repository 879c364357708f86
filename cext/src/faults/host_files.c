#include "faults/host_files.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Entries in ascending order of device and inode. */
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct sr_host_file *files;
static size_t count, room;
static sr_io_hook_fn decide; /* atomic */

/* The place of a file in the table, or the place that it would have; the lock is held. */
static size_t place_of(uint64_t device, uint64_t inode)
{
	size_t from = 0, upto = count;

	while (from < upto) {
		size_t middle = (from + upto) / 2;
		const struct sr_host_file *file = &files[middle];
		if (file->device < device || (file->device == device && file->inode < inode))
			from = middle + 1;
		else
			upto = middle;
	}
	return from;
}

static int is_at(size_t place, uint64_t device, uint64_t inode)
{
	return place < count && files[place].device == device && files[place].inode == inode;
}

/* 1 if a rule may meet the call, or the file is unknown. */
static int is_wanted(int op, int fd, int64_t offset, int64_t bytes)
{
	struct stat found;

	if (fstat(fd, &found) != 0)
		return 0;
	pthread_rwlock_rdlock(&lock);
	size_t place = place_of(found.st_dev, found.st_ino);
	int is_known = is_at(place, found.st_dev, found.st_ino);
	struct sr_host_file file = is_known ? files[place] : (struct sr_host_file){0};
	pthread_rwlock_unlock(&lock);
	if (!is_known)
		return S_ISREG(found.st_mode);
	if (!(file.ops >> op & 1))
		return 0;
	return op == SR_IO_SYNC || op == SR_IO_RESIZE || ((uint64_t)offset < file.end && (uint64_t)(offset + bytes) > file.start);
}

static int64_t hook(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs)
{
	sr_io_hook_fn asked = __atomic_load_n(&decide, __ATOMIC_ACQUIRE);

	return asked && is_wanted(op, fd, offset, bytes) ? asked(op, fd, offset, bytes, iov, iovs) : 0;
}

void sr_host_files_watch(sr_io_hook_fn wanted)
{
	__atomic_store_n(&decide, wanted, __ATOMIC_RELEASE);
	sr_io_set_hook(wanted ? hook : NULL);
	sr_host_files_forget_all();
}

int sr_host_files_note(const struct sr_host_file *file)
{
	int rc = 0;

	pthread_rwlock_wrlock(&lock);
	size_t place = place_of(file->device, file->inode);
	if (!is_at(place, file->device, file->inode)) {
		if (count == room) {
			size_t wanted = room ? room * 2 : 64;
			struct sr_host_file *larger = realloc(files, wanted * sizeof(*files));
			if (larger) {
				files = larger;
				room = wanted;
			} else {
				rc = -ENOMEM;
			}
		}
		if (rc == 0) {
			memmove(&files[place + 1], &files[place], (count - place) * sizeof(*files));
			count++;
		}
	}
	if (rc == 0)
		files[place] = *file;
	pthread_rwlock_unlock(&lock);
	return rc;
}

void sr_host_files_forget(uint64_t device, uint64_t inode)
{
	pthread_rwlock_wrlock(&lock);
	size_t place = place_of(device, inode);
	if (is_at(place, device, inode))
		memmove(&files[place], &files[place + 1], (--count - place) * sizeof(*files));
	pthread_rwlock_unlock(&lock);
}

void sr_host_files_forget_all(void)
{
	pthread_rwlock_wrlock(&lock);
	free(files);
	files = NULL;
	count = room = 0;
	pthread_rwlock_unlock(&lock);
}

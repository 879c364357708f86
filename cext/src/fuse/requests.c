/* Answers to the kernel's FUSE requests on open disks. */
#define _GNU_SOURCE
#include "fuse/requests.h"

#include <errno.h>
#include <string.h>

#include "disk/disk.h"

/* Missing in the headers of some systems. */
enum { OP_STATX = 52, OP_COPY_FILE_RANGE_64 = 53 };

static uint64_t handle_of(const struct sr_request *request, uint64_t fh)
{
	return request->may_wait ? fh : fh | SR_HANDLE_NO_WAIT;
}

static int64_t answer_read(const struct sr_request *request)
{
	const struct fuse_read_in *arg = request->arg;

	if (arg->size > request->data_room)
		return -EINVAL;
	return sr_handle_read(handle_of(request, arg->fh), request->data, arg->size, arg->offset);
}

static int64_t answer_write(const struct sr_request *request)
{
	const struct fuse_write_in *arg = request->arg;
	struct fuse_write_out out = {0};
	int64_t done;

	if (arg->size > request->data_bytes)
		return -EINVAL;
	done = sr_handle_write(handle_of(request, arg->fh), request->data, arg->size, arg->offset);
	if (done < 0)
		return done;
	out.size = (uint32_t)done;
	memcpy(request->data, &out, sizeof(out));
	return sizeof(out);
}

static int64_t answer_seek(const struct sr_request *request)
{
	const struct fuse_lseek_in *arg = request->arg;
	struct fuse_lseek_out out;
	int64_t found = sr_handle_seek(arg->fh, arg->offset, (int)arg->whence);

	if (found < 0)
		return found;
	out.offset = (uint64_t)found;
	memcpy(request->data, &out, sizeof(out));
	return sizeof(out);
}

static int64_t answer_fallocate(const struct sr_request *request)
{
	const struct fuse_fallocate_in *arg = request->arg;

	return sr_handle_fallocate(handle_of(request, arg->fh), (int)arg->mode, arg->offset, arg->length);
}

bool sr_request_is_slow(const struct fuse_in_header *in)
{
	return in->opcode == FUSE_FSYNC || in->opcode == FUSE_FALLOCATE;
}

int64_t sr_request_answer(const struct sr_request *request)
{
	int64_t answer;

	switch (request->in->opcode) {
	case FUSE_READ:
		answer = answer_read(request);
		break;
	case FUSE_WRITE:
		answer = answer_write(request);
		break;
	case FUSE_FSYNC:
		answer = sr_handle_flush(handle_of(request, ((const struct fuse_fsync_in *)request->arg)->fh));
		break;
	case FUSE_FALLOCATE:
		answer = answer_fallocate(request);
		break;
	case FUSE_LSEEK:
		answer = answer_seek(request);
		break;
	case FUSE_FLUSH: /* sent at each close of a descriptor; it is no barrier */
		return 0;
	/* Never implemented here. The kernel remembers ENOSYS and works without, which is right for these operations
	 * only. A write asks for an attribute, so these must not wait for Python. */
	case FUSE_GETXATTR:
	case FUSE_SETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_INTERRUPT:
	case FUSE_POLL:
	case FUSE_COPY_FILE_RANGE:
	case OP_COPY_FILE_RANGE_64:
	case OP_STATX:
	case FUSE_TMPFILE:
		return -ENOSYS;
	case FUSE_IOCTL:
		return -ENOTTY;
	default:
		return SR_UPCALL;
	}
	/* ENOSYS would disable the operation for every file of the mount. */
	return answer == -ENOSYS ? -EOPNOTSUPP : answer;
}

int64_t sr_request_init(const struct fuse_init_in *in, uint32_t request_bytes_max, uint16_t queue, uint64_t flags,
			struct fuse_init_out *out)
{
	/* No FUSE_AUTO_INVAL_DATA: it costs a GETATTR with every read after a write, and disks change only through the
	 * mount.  No FUSE_WRITEBACK_CACHE: it reorders and merges a guest's writes before they are logged.
	 * FUSE_HANDLE_KILLPRIV_V2: no file here has bits or capabilities that a write would have to take away. */
	uint64_t wanted = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES |
			  FUSE_DO_READDIRPLUS | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2 |
			  FUSE_MAX_PAGES | FUSE_INIT_EXT | flags;
	uint64_t offered = in->flags;

	if (in->major != FUSE_KERNEL_VERSION || !(offered & FUSE_MAX_PAGES)) /* Linux before 4.20 */
		return -EPROTO;
	if (offered & FUSE_INIT_EXT)
		offered |= (uint64_t)in->flags2 << 32;
	memset(out, 0, sizeof(*out));
	out->major = FUSE_KERNEL_VERSION;
	out->minor = FUSE_KERNEL_MINOR_VERSION;
	out->max_readahead = UINT32_MAX; /* the mount's bdi alone limits it (blockfs/fuse/mount.py) */
	out->flags = (uint32_t)(wanted & offered);
	out->flags2 = (uint32_t)((wanted & offered) >> 32);
	out->max_background = queue;
	out->congestion_threshold = (uint16_t)(queue - queue / 4); /* the ratio of the kernel's own default */
	out->max_write = request_bytes_max;
	out->max_pages = (uint16_t)(request_bytes_max / 4096);
	out->time_gran = 1;
	return sizeof(*out);
}

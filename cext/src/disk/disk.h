/* One virtual disk: a layer, its change log, perhaps a snapshot; and the handles under which it is open.
 *
 * Fault contract: see blockfs/disk/disk.py.  A record is in the log before its bytes are on the disk; both happen under the
 * disk's lock, so overlapping writes reach log and disk in the same order.  No function here waits for Python: when no
 * spare segment is at hand the current one goes on growing.
 *
 * Any thread.  Functions return 0 (or bytes done), or -errno.
 */
#ifndef SITERIG_DISK_H
#define SITERIG_DISK_H

#include <stddef.h>
#include <stdint.h>

#include "base/positions.h"
#include "base/record.h"
#include "layers/layer.h"

enum { SR_DIRTY_HEADER_BYTES = 4096, SR_CHUNK_BYTES = 65536 };

/* Whether a disk is logged, and if no longer, why; kept in the dirty file, so that it outlives a kill. */
enum sr_log_state { SR_UNLOGGED = -1, SR_LOGGED = 0, SR_LOG_OVERFLOW = 1, SR_LOG_FULL = 2, SR_SYNC_FAILED = 3, SR_WRITE_FAILED = 4,
		    SR_IMAGE_CHANGED = 5, SR_LOG_LOST = 6 };

struct sr_disk;

/* `positions`: the host's counter, shared by all its disks.  `event_fd`: an eventfd that is raised when Python has
 * something to do for the disk (a segment was switched, the log was given up).  The layer stays the caller's and must
 * outlive the disk. */
struct sr_disk *sr_disk_new(struct sr_layer *layer, struct sr_positions *positions, int event_fd);

/* Open handles give -EIO from now on; requests that run are waited for. */
void sr_disk_end_requests(struct sr_disk *disk);

/* Frees the disk and closes its log's descriptors without a sync.  Open handles give -EIO from now on. */
void sr_disk_free(struct sr_disk *disk);

/* Somebody else has changed the disk's file: its log is given up (SR_IMAGE_CHANGED).  The disk notes by itself that its file
 * was cut, or has no name any more; whatever meets that gives -EIO. */
void sr_disk_note_changed(struct sr_disk *disk);
int sr_disk_file_changed(struct sr_disk *disk);
void sr_disk_forget_file_changed(struct sr_disk *disk);

/* Somebody else has taken away files of the log: it is given up (SR_LOG_LOST). */
void sr_disk_note_log_lost(struct sr_disk *disk);

/* How many more bytes its file has than the disk (negative: it was cut), or 0 if that cannot be told. */
int64_t sr_disk_excess_bytes(struct sr_disk *disk);

/* Which of the files that tell what the disk's bytes are were cut, or are on a medium that fails: no change succeeds (-EIO), the
 * dirty file's until a new log begins.  A bit mask of enum sr_lost_file. */
int sr_disk_lost_files(struct sr_disk *disk);

/* How many changes there were.  No write is under way when they are counted. */
uint64_t sr_disk_changes(struct sr_disk *disk);

/* --- bytes --------------------------------------------------------------------------------------------------- */

/* Up to `bytes` bytes; fewer at the end of the disk. */
int64_t sr_disk_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset);

/* Log, then write.  Returns bytes written: fewer than `bytes` if the rest lies past the end of the disk, or if the host's disk
 * became full on the way.  The log has exactly the bytes that were written.  -ENOSPC: all of them lie past the end, or the
 * host's disk is full.  An error leaves log and disk as they were. */
int64_t sr_disk_write(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset);

/* `type`: SR_ZERO or SR_DISCARD.  What lies past the end is left out. */
int sr_disk_zero(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes);

/* Grow; -EINVAL if smaller. */
int sr_disk_resize(struct sr_disk *disk, uint64_t bytes);

/* How often the bytes or the size of the disk have changed since it was opened.  A change counts when it is done and not
 * before: who finds the same number twice has missed no change that was done by the first time. */
uint64_t sr_disk_modifications(const struct sr_disk *disk);

/* By which sizes requests may grow the disk: multiples of `step_bytes`; 0, the default: by none. */
void sr_disk_allow_growth(struct sr_disk *disk, uint64_t step_bytes);

/* Grow the disk if it has fewer than `bytes` bytes, and raise the event: Python then notes the new size in the disk's state.
 * -EFBIG: it cannot grow, or not so far; -EINVAL: `bytes` is not a multiple of the step. */
int sr_disk_reach(struct sr_disk *disk, uint64_t bytes);

/* What was written before the call is on stable storage, in the log and on the disk.  An error means that it cannot be
 * told what was lost: the log is given up (SR_SYNC_FAILED). */
int sr_disk_flush(struct sr_disk *disk);

/* A disk over a view takes for its own what it lacks of it: about `bytes_max` bytes in steps that hold the lock shortly.  No byte
 * of the disk changes, so the log has nothing of it.  1: it holds all; 0: there is more; -ENOSPC: as far as it came.  One
 * thread at a time. */
int sr_disk_hydrate(struct sr_disk *disk, uint64_t bytes_max);
uint64_t sr_disk_hydrated_bytes(struct sr_disk *disk); /* it holds all bytes below this offset */
int sr_disk_is_hydrated(struct sr_disk *disk);

/* As sr_disk_flush, but what the guest did not ask for leaves no FLUSH record. */
int sr_disk_sync(struct sr_disk *disk);

/* A full one lets go of the view, and goes on as a raw file.  -EAGAIN: it is not full (it has grown). */
int sr_disk_detach_backing(struct sr_disk *disk);

/* Data and holes as file systems have them, in whole blocks: a state of the past knows them to the byte, and programs
 * (qemu-img) that count in sectors would take a sector that has both for a hole. */
int64_t sr_disk_seek(struct sr_disk *disk, uint64_t offset, int whence);
uint64_t sr_disk_bytes(struct sr_disk *disk);

/* --- log ----------------------------------------------------------------------------------------------------- */

struct sr_log_setup {
	const uint8_t *header;     /* of every segment; first_seq and crc are filled in */
	uint64_t number, next_seq; /* of the first segment, of the first record */
	uint64_t last_position;    /* of the record before it */
	uint64_t kept_bytes;       /* what older segments take that are kept */
	uint64_t oldest_number;    /* of the kept segments */
	uint64_t segment_bytes;    /* a segment is switched when it is so long, if there is a spare */
	uint64_t kept_bytes_max;   /* past it the log is given up; 0: no limit */
	int abandon_when_full;         /* when the log cannot be written: give it up (1), or refuse the write (0) */
	int fd;                    /* of the first segment; owned */
	int dirty_fd;              /* the dirty file; owned.  If its state word says that the log was given up, then there is no
				    * log, `fd` is not touched, and the bitmap goes on being filled */
};

/* Log everything from now on, in place of a log that there is.  The header of the first segment is on stable storage then.
 * On an error all is as before, and nothing is owned. */
int sr_log_start(struct sr_disk *disk, const struct sr_log_setup *setup);

/* Stop logging; nothing is synced. */
void sr_log_stop(struct sr_disk *disk);

/* Hand over a file that the next segment can use: 1 if taken (owned), 0 if there is one already or no log. */
int sr_log_give_spare(struct sr_disk *disk, int fd);

/* Append a record without bytes for the disk (TAG, FLUSH) and, if `rotate`, begin a new segment in the spare.  `position`
 * gets the record's.  -EAGAIN: to rotate there must be a spare; -ENOTCONN: no log. */
int sr_log_append(struct sr_disk *disk, int type, int flags, const void *payload, uint32_t bytes, int rotate,
		  uint64_t *position);

/* Begin a new segment unless the current one is empty. */
int sr_log_rotate(struct sr_disk *disk);

/* Make the closed segments durable, so that they do not wait for the guest to ask for it. */
int sr_log_sync_closed(struct sr_disk *disk);

/* A record of an older segment that is kept, at start: its chunks are dirty if the log is given up. */
void sr_log_touch(struct sr_disk *disk, uint64_t number, uint64_t offset, uint64_t bytes);

/* Segments below `oldest_number` are no longer kept; they took `bytes`. */
void sr_log_applied(struct sr_disk *disk, uint64_t oldest_number, uint64_t bytes);

/* Another limit than the one of the log's setup: the disk has grown. */
void sr_log_limit(struct sr_disk *disk, uint64_t kept_bytes_max);

struct sr_segment_info {
	uint64_t number, first_seq, last_seq, last_position, end;
	int durable; /* closed, and on stable storage */
	int closed;
};

/* Segments of this log that are not forgotten, oldest first, the current one last; returns how many there are. */
size_t sr_log_segments(struct sr_disk *disk, struct sr_segment_info *out, size_t max);

/* Forget a closed, durable segment (Python keeps account of it now); closes its descriptor. */
void sr_log_forget(struct sr_disk *disk, uint64_t number);

struct sr_log_info {
	int state; /* enum sr_log_state */
	uint64_t next_seq, last_position, kept_bytes; /* kept: of all segments, the current one too */
	uint64_t dirty_chunks;
	int has_spare;
};
void sr_log_info(struct sr_disk *disk, struct sr_log_info *out);

/* --- snapshot ------------------------------------------------------------------------------------------------ */

/* Begin copy-before-write of `count` disks at one `position`, each into its file of `fds`, at most `bytes_max` of it.  Each
 * disk's log begins a new segment; `first_seqs` get the first sequence numbers that are not in the snapshot.  On success
 * the fds are owned.  -EEXIST, -ENOTCONN (no log), -EAGAIN (a disk needs a spare segment, or grew just now): nothing
 * was begun. */
int sr_snapshots_begin(struct sr_disk **disks, const int *fds, const uint64_t *bytes_max, size_t count,
		       uint64_t *first_seqs, uint64_t *position);

/* Bytes below `upto` need not be preserved any more (rounded down to a chunk). */
void sr_snapshot_release(struct sr_disk *disk, uint64_t upto);
void sr_snapshot_end(struct sr_disk *disk);

/* Exactly `bytes` bytes as they were.  -EIO: could not be kept, were released, or there is no snapshot. */
int sr_snapshot_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset);

struct sr_snapshot_info {
	int exists, error; /* error: errno with which keeping old bytes failed, or 0 */
	uint64_t bytes, store_bytes, store_bytes_max, released;
	uint64_t serial; /* of this snapshot among the disk's */
};
void sr_snapshot_info(struct sr_disk *disk, struct sr_snapshot_info *out);

/* --- handles and counters ------------------------------------------------------------------------------------- */

enum { SR_COUNTED_OPS = 5, SR_LATENCY_BUCKETS = 24 };
enum sr_counted { SR_COUNT_READ, SR_COUNT_WRITE, SR_COUNT_FLUSH, SR_COUNT_DISCARD, SR_COUNT_SEEK };

/* Since the disk was opened.  Bucket b counts requests that took less than 2^b microseconds and not less than half. */
struct sr_counters {
	uint64_t ops[SR_COUNTED_OPS], bytes[SR_COUNTED_OPS], errors[SR_COUNTED_OPS];
	uint64_t latency[SR_COUNTED_OPS][SR_LATENCY_BUCKETS];
	uint64_t longest_ns[SR_COUNTED_OPS];
	uint64_t log_bytes, log_records, segments_switched;
	uint64_t longest_switch_ns; /* for which a segment's switch held writers up */
	uint64_t longest_append_ns; /* the same of a tag */
};
void sr_disk_counters(struct sr_disk *disk, struct sr_counters *out);

/* Handles are what requests name: numbers with this bit, so that no folder's or Python's own handle is one. */
#define SR_HANDLE_BIT (1ull << 62)
enum sr_handle_kind { SR_HANDLE_DISK, SR_HANDLE_VHD, SR_HANDLE_SNAPSHOT, SR_HANDLE_LOG, SR_HANDLE_FILE };

/* Open `disk` as `kind`; `footer` (512 bytes behind the disk) for SR_HANDLE_VHD; `fd` (owned) of segment `number` for
 * SR_HANDLE_LOG, or of any file, which is read as it is, for SR_HANDLE_FILE.  Only SR_HANDLE_DISK can be writable.
 * Returns the handle, or -errno. */
int64_t sr_handle_open(struct sr_disk *disk, int kind, int writable, const uint8_t *footer, int fd, uint64_t number);
void sr_handle_close(uint64_t handle);

/* Requests; those on the disk itself (SR_HANDLE_DISK, SR_HANDLE_VHD) are counted and timed.  -EBADF: no such handle, or
 * not writable. */
int64_t sr_handle_read(uint64_t handle, void *buf, uint64_t bytes, uint64_t offset);
int64_t sr_handle_write(uint64_t handle, const void *buf, uint64_t bytes, uint64_t offset);
int sr_handle_flush(uint64_t handle);
/* `mode` as fallocate(2).  PUNCH_HOLE|KEEP_SIZE is a discard, ZERO_RANGE (|KEEP_SIZE) zeroes; these two are counted.  0 and
 * KEEP_SIZE change no byte and reserve no space.  Without KEEP_SIZE the disk grows to the end of the range
 * (sr_disk_reach).  All others: -EOPNOTSUPP. */
int sr_handle_fallocate(uint64_t handle, int mode, uint64_t offset, uint64_t bytes);
int64_t sr_handle_seek(uint64_t handle, uint64_t offset, int whence);

#endif

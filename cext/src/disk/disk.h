/* One virtual disk: a layer, its change log, perhaps a snapshot; and the handles under which it is open.
 *
 * Fault contract: see blockfs/disk/disk.py. A record is in the log before its bytes are on the disk. Both happen under
 * the disk's lock, so overlapping writes reach log and disk in the same order. No function here waits for Python:
 * without a spare segment the current segment grows further.
 *
 * Any thread. Functions return 0 (or bytes done), or -errno.
 */
#ifndef SITERIG_DISK_H
#define SITERIG_DISK_H

#include <stddef.h>
#include <stdint.h>

#include "base/positions.h"
#include "base/record.h"
#include "base/xts.h"
#include "layers/layer.h"

enum { SR_DIRTY_HEADER_BYTES = 4096, SR_CHUNK_BYTES = 65536 };

/* The state of a disk's log; after the end of the log, the reason. It is stored in the dirty file, so it survives a
 * kill. */
enum sr_log_state { SR_UNLOGGED = -1, SR_LOGGED = 0, SR_LOG_OVERFLOW = 1, SR_LOG_FULL = 2, SR_SYNC_FAILED = 3, SR_WRITE_FAILED = 4,
		    SR_IMAGE_CHANGED = 5, SR_LOG_LOST = 6 };

struct sr_disk;

/* Create a disk. `positions` is the host's counter, shared by all its disks. `event_fd` is an eventfd that is raised
 * when Python has work for the disk (a segment was switched, the log was abandoned). The layer stays the caller's
 * and must outlive the disk. */
struct sr_disk *sr_disk_new(struct sr_layer *layer, struct sr_positions *positions, int event_fd);

/* Encrypt the disk's bytes from now on (base/xts.h): its layer, its log and the store of its snapshot have encrypted bytes,
 * and a write or a range of zeros of any bytes changes whole lines there. Shares `xts`. Call it before the first request. */
void sr_disk_set_cipher(struct sr_disk *disk, struct sr_xts *xts);

/* Make all requests on open handles fail with -EIO from now on, and wait for running requests. */
void sr_disk_end_requests(struct sr_disk *disk);

/* Free the disk, and close its log's descriptors without a sync. Open handles give -EIO from now on. */
void sr_disk_free(struct sr_disk *disk);

/* Report that another program has changed the disk's file: the log is abandoned (SR_IMAGE_CHANGED). The disk itself
 * detects that its file was truncated, or has no name any more; operations that meet this fail with -EIO. */
void sr_disk_note_changed(struct sr_disk *disk);
int sr_disk_file_changed(struct sr_disk *disk);

/* Return 1 if this disk has raised the event since the last call. */
int sr_disk_take_event(struct sr_disk *disk);
void sr_disk_forget_file_changed(struct sr_disk *disk);

/* Report that another program has removed files of the log: it is abandoned (SR_LOG_LOST). */
void sr_disk_note_log_lost(struct sr_disk *disk);

/* Excess of the file's size over the disk's (negative: it was truncated), or 0 if unknown. */
int64_t sr_disk_excess_bytes(struct sr_disk *disk);

/* The files describing the disk's bytes that were truncated, or whose medium fails, as a bit mask of enum
 * sr_lost_file. Every change fails (-EIO); for the dirty file, until a new log begins. */
int sr_disk_lost_files(struct sr_disk *disk);

/* Number of changes; no write is in progress while they are counted. */
uint64_t sr_disk_changes(struct sr_disk *disk);

/* --- bytes --------------------------------------------------------------------------------------------------- */

/* Read up to `bytes` bytes; fewer at the end of the disk. */
int64_t sr_disk_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset);

/* Log, then write. Returns bytes written: fewer than `bytes` if the rest is past the end of the disk, or if the
 * host's disk became full during the write. The log has exactly the bytes that were written. -ENOSPC: all of them
 * are past the end, or the host's disk is full. An error leaves log and disk unchanged. */
int64_t sr_disk_write(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset);

/* `type` is SR_ZERO or SR_DISCARD. The part past the end is left out. */
int sr_disk_zero(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes);

/* Grow; -EINVAL if the disk would become smaller. */
int sr_disk_resize(struct sr_disk *disk, uint64_t bytes);

/* Number of changes of the disk's bytes or size since it was opened. A change counts only when it is done: two equal
 * results mean that no change was missed that was done by the time of the first. */
uint64_t sr_disk_modifications(const struct sr_disk *disk);

/* Refuse every write, discard and growth (-EROFS) until that is ended, also of handles that are open for writing. None is
 * under way on return. A read, a flush, a tag of the log, and a hydration are possible. */
void sr_disk_fence(struct sr_disk *disk, int fenced);

/* Allow requests to grow the disk to multiples of `step_bytes`; 0, the default: not at all. */
void sr_disk_allow_growth(struct sr_disk *disk, uint64_t step_bytes);

/* Grow the disk if it has fewer than `bytes` bytes, and raise the event: Python then records the new size in the
 * disk's state. -EFBIG: it cannot grow, or not that far; -EINVAL: `bytes` is not a multiple of the step. */
int sr_disk_reach(struct sr_disk *disk, uint64_t bytes);

/* Make all earlier writes durable, in the log and on the disk. After an error it is unknown which bytes were lost:
 * the log is abandoned (SR_SYNC_FAILED). */
int sr_disk_flush(struct sr_disk *disk);

/* Hydrate an overlay: copy about `bytes_max` bytes that it lacks, in steps that hold the lock briefly. The disk's
 * contents do not change, so the log gets no record. 1: the overlay holds all blocks; 0: more are missing; -ENOSPC:
 * the host's disk is full, and the copied part stays. One thread at a time. */
int sr_disk_hydrate(struct sr_disk *disk, uint64_t bytes_max);
uint64_t sr_disk_hydrated_bytes(struct sr_disk *disk); /* the disk holds all bytes below this offset */
int sr_disk_is_hydrated(struct sr_disk *disk);

/* Like sr_disk_flush, but without a FLUSH record, because the guest did not ask for it. */
int sr_disk_sync(struct sr_disk *disk);

/* Detach the backing of a hydrated overlay, which continues as a raw file. -EAGAIN: it is not hydrated (it has
 * grown). */
int sr_disk_detach_backing(struct sr_disk *disk);

/* Seek data or holes in whole blocks, like file systems. A view knows them to the byte, and programs that count in
 * sectors (qemu-img) would take a sector with both for a hole. */
int64_t sr_disk_seek(struct sr_disk *disk, uint64_t offset, int whence);
uint64_t sr_disk_bytes(struct sr_disk *disk);

/* --- log ----------------------------------------------------------------------------------------------------- */

struct sr_log_setup {
	const uint8_t *header;     /* of every segment; the writer fills in first_seq and crc */
	uint64_t number, next_seq; /* of the first segment, of the first record */
	uint64_t last_position;    /* of the previous record */
	uint64_t kept_bytes;       /* size of the older kept segments */
	uint64_t oldest_number;    /* number of the oldest kept segment */
	uint64_t segment_bytes;    /* at this size the segment is switched, if there is a spare */
	uint64_t kept_bytes_max;   /* beyond it the log is abandoned; 0: no limit */
	int abandon_when_full;         /* if the log cannot be written: abandon it (1), or refuse the write (0) */
	int fd;                    /* of the first segment; owned */
	int dirty_fd;              /* the dirty file; owned. If its state word says that the log was abandoned, there is no
				    * log, `fd` is not used, and the bitmap continues to be filled */
};

/* Log everything from now on, in place of an existing log. The header of the first segment is durable then. An error
 * changes nothing, and nothing is owned. */
int sr_log_start(struct sr_disk *disk, const struct sr_log_setup *setup);

/* Stop logging; nothing is synced. */
void sr_log_stop(struct sr_disk *disk);

/* Give the log a file for the next segment: 1 if it was taken (owned), 0 if there is a spare already or no log. */
int sr_log_give_spare(struct sr_disk *disk, int fd);

/* Append a record without bytes for the disk (TAG, FLUSH) and, with `rotate`, begin a new segment in the spare.
 * `position` gets the record's position. -EAGAIN: to rotate there must be a spare; -ENOTCONN: no log. */
int sr_log_append(struct sr_disk *disk, int type, int flags, const void *payload, uint32_t bytes, int rotate,
		  uint64_t *position);

/* Begin a new segment unless the current one is empty. */
int sr_log_rotate(struct sr_disk *disk);

/* Make the closed segments durable without waiting for a flush of the guest. */
int sr_log_sync_closed(struct sr_disk *disk);

/* Add a record of an older kept segment, at the start: its chunks become dirty if the log is abandoned. */
void sr_log_touch(struct sr_disk *disk, uint64_t number, uint64_t offset, uint64_t bytes);

/* Record that segments below `oldest_number` are no longer kept; their size was `bytes`. */
void sr_log_trim(struct sr_disk *disk, uint64_t oldest_number, uint64_t bytes);

/* Change the limit of the log's setup, because the disk has grown. */
void sr_log_limit(struct sr_disk *disk, uint64_t kept_bytes_max);

struct sr_segment_info {
	uint64_t number, first_seq, last_seq, last_position, end;
	int durable; /* closed, and on stable storage */
	int closed;
};

/* List the segments of this log that are not forgotten, oldest first, the current one last; returns their number. */
size_t sr_log_segments(struct sr_disk *disk, struct sr_segment_info *out, size_t max);

/* Forget a closed, durable segment, which Python has recorded; closes its descriptor. */
void sr_log_forget(struct sr_disk *disk, uint64_t number);

struct sr_log_info {
	int state; /* enum sr_log_state */
	uint64_t next_seq, last_position, kept_bytes; /* kept: of all segments, the current one included */
	uint64_t dirty_chunks;
	int has_spare;
};
void sr_log_info(struct sr_disk *disk, struct sr_log_info *out);

/* --- snapshot ------------------------------------------------------------------------------------------------ */

/* Begin copy-before-write of `count` disks at one `position`, each into its file of `fds`, of at most `bytes_max`.
 * Each disk's log begins a new segment; `first_seqs` get the first sequence numbers that are not in the snapshot. On
 * success the fds are owned. -EEXIST, -ENOTCONN (no log), -EAGAIN (a disk needs a spare segment, or just grew): no
 * snapshot was begun. */
int sr_snapshots_begin(struct sr_disk **disks, const int *fds, const uint64_t *bytes_max, size_t count,
		       uint64_t *first_seqs, uint64_t *position);

/* Stop preserving bytes below `upto` (rounded down to a chunk). */
void sr_snapshot_release(struct sr_disk *disk, uint64_t upto);
void sr_snapshot_end(struct sr_disk *disk);

/* Read exactly `bytes` bytes of the snapshot. -EIO: they could not be preserved, were released, or there is no
 * snapshot. */
int sr_snapshot_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset);

struct sr_snapshot_info {
	int exists, error; /* error: errno of the failed preservation, or 0 */
	uint64_t bytes, store_bytes, store_bytes_max, released;
	uint64_t serial; /* number of this snapshot among the disk's snapshots */
};
void sr_snapshot_info(struct sr_disk *disk, struct sr_snapshot_info *out);

/* --- handles and counters ------------------------------------------------------------------------------------- */

enum { SR_COUNTED_OPS = 5, SR_LATENCY_BUCKETS = 24 };
enum sr_counted { SR_COUNT_READ, SR_COUNT_WRITE, SR_COUNT_FLUSH, SR_COUNT_DISCARD, SR_COUNT_SEEK };

/* Counters since the disk was opened. Bucket b counts requests that took less than 2^b microseconds, but at least
 * half of that. */
struct sr_counters {
	uint64_t ops[SR_COUNTED_OPS], bytes[SR_COUNTED_OPS], errors[SR_COUNTED_OPS];
	uint64_t latency[SR_COUNTED_OPS][SR_LATENCY_BUCKETS];
	uint64_t longest_ns[SR_COUNTED_OPS];
	uint64_t log_bytes, log_records, segments_switched;
	uint64_t longest_switch_ns; /* longest time that a segment's switch delayed writers */
	uint64_t longest_append_ns; /* the same for a tag */
};
void sr_disk_counters(struct sr_disk *disk, struct sr_counters *out);

/* Requests name handles: numbers with this bit, which no handle of a folder or of Python has. */
#define SR_HANDLE_BIT (1ull << 62)
/* With this bit in the handle, a request that a fault rule may make wait is not begun, and returns SR_WOULD_WAIT: repeat
 * it without the bit, on a thread that may wait. */
enum { SR_HANDLE_NO_WAIT = 1ll << 61 };
enum { SR_WOULD_WAIT = -10002 };
enum sr_handle_kind { SR_HANDLE_DISK, SR_HANDLE_VHD, SR_HANDLE_SNAPSHOT, SR_HANDLE_LOG, SR_HANDLE_FILE };

/* Open `disk` as `kind`. `footer` is the 512 bytes after the disk for SR_HANDLE_VHD. `fd` (owned) is the file of
 * segment `number` for SR_HANDLE_LOG, or any file for SR_HANDLE_FILE, which is read unchanged. Only SR_HANDLE_DISK
 * can be writable. Returns the handle, or -errno. */
int64_t sr_handle_open(struct sr_disk *disk, int kind, int writable, const uint8_t *footer, int fd, uint64_t number);
void sr_handle_close(uint64_t handle);

/* Requests. Those on the disk itself (SR_HANDLE_DISK, SR_HANDLE_VHD) are counted and timed, and meet the faults of the
 * disk's rules (faulty.h). -EBADF: no such handle, or it is not writable. */
int64_t sr_handle_read(uint64_t handle, void *buf, uint64_t bytes, uint64_t offset);
int64_t sr_handle_write(uint64_t handle, const void *buf, uint64_t bytes, uint64_t offset);
int sr_handle_flush(uint64_t handle);
/* `mode` as in fallocate(2). PUNCH_HOLE|KEEP_SIZE is a discard, ZERO_RANGE (|KEEP_SIZE) zeroes; these two are
 * counted. 0 and KEEP_SIZE change no byte and reserve no space. Without KEEP_SIZE the disk grows to the end of the
 * range (sr_disk_reach). All others: -EOPNOTSUPP. */
int sr_handle_fallocate(uint64_t handle, int mode, uint64_t offset, uint64_t bytes);
int64_t sr_handle_seek(uint64_t handle, uint64_t offset, int whence);

#endif

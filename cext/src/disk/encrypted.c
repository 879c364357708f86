/* Changes of an encrypted disk.  Fault contract: blockfs/disk/disk.py. */
#define _GNU_SOURCE
#include "disk/encrypted.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "disk/lines.h"
#include "disk/lock.h"
#include "disk/stored.h"
#include "layers/decrypted.h"

/* The kernel writes at most 1 MiB at once; larger writes get a buffer of their own. */
enum { BUFFERS_KEPT = 4, BUFFER_BYTES = (1 << 20) + 2 * SR_XTS_LINE_BYTES };

/* Buffers that are not in use: new memory for each write would cost more than its encryption. */
struct sr_cipher_buffers {
	pthread_mutex_t lock;
	void *kept[BUFFERS_KEPT];
	int count;
};

void sr_disk_set_cipher(struct sr_disk *disk, struct sr_xts *xts)
{
	sr_encrypted_end(disk);
	disk->xts = sr_xts_share(xts);
	disk->buffers = calloc(1, sizeof(*disk->buffers)); /* without it, each write gets a buffer of its own */
	if (disk->buffers)
		pthread_mutex_init(&disk->buffers->lock, NULL);
}

void sr_encrypted_end(struct sr_disk *disk)
{
	struct sr_cipher_buffers *buffers = disk->buffers;

	sr_xts_put(disk->xts);
	disk->xts = NULL;
	disk->buffers = NULL;
	if (!buffers)
		return;
	while (buffers->count)
		free(buffers->kept[--buffers->count]);
	pthread_mutex_destroy(&buffers->lock);
	free(buffers);
}

static void *take_buffer(const struct sr_disk *disk, uint64_t bytes)
{
	struct sr_cipher_buffers *own = disk->buffers;
	void *buffer = NULL;

	if (!own || bytes > BUFFER_BYTES)
		return malloc(bytes);
	pthread_mutex_lock(&own->lock);
	if (own->count)
		buffer = own->kept[--own->count];
	pthread_mutex_unlock(&own->lock);
	return buffer ? buffer : malloc(BUFFER_BYTES);
}

static void return_buffer(const struct sr_disk *disk, void *buffer, uint64_t bytes)
{
	struct sr_cipher_buffers *own = disk->buffers;

	if (own && bytes <= BUFFER_BYTES) {
		pthread_mutex_lock(&own->lock);
		if (own->count < BUFFERS_KEPT) {
			own->kept[own->count++] = buffer;
			buffer = NULL;
		}
		pthread_mutex_unlock(&own->lock);
	}
	free(buffer);
}

/* Encrypt the lines around a range that does not begin and end between lines: their other bytes are those that the disk
 * has. disk->lock is held. */
static int widen(struct sr_disk *disk, uint8_t *into, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct sr_lines around = sr_lines_of(offset, bytes);
	uint64_t last = around.bytes - SR_XTS_LINE_BYTES;
	int rc = sr_layer_read_decrypted(disk->layer, disk->xts, into, SR_XTS_LINE_BYTES, around.offset);

	if (rc == 0 && last)
		rc = sr_layer_read_decrypted(disk->layer, disk->xts, into + last, SR_XTS_LINE_BYTES, around.offset + last);
	memcpy(into + around.before, buf, bytes);
	return rc ? rc : sr_xts_encrypt(disk->xts, into, around.bytes, around.offset);
}

/* The number of bytes of the range that `done` bytes of its lines contain. */
static int64_t done_of_range(int64_t done, struct sr_lines around, uint64_t bytes)
{
	int64_t inside = done - (int64_t)around.before;

	if (done <= 0)
		return done;
	return inside < (int64_t)bytes ? inside : (int64_t)bytes;
}

int64_t sr_encrypted_write(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset, int may_pass_fence)
{
	uint64_t size = sr_layer_bytes(disk->layer); /* a growth that comes now comes after this write */

	if (offset >= size)
		return -ENOSPC;
	if (bytes > size - offset)
		bytes = size - offset;
	struct sr_lines around = sr_lines_of(offset, bytes);
	int is_whole = around.bytes == bytes;
	if (around.bytes > SR_PAYLOAD_BYTES_MAX)
		return -EINVAL;
	uint8_t *stored = take_buffer(disk, around.bytes);
	if (!stored)
		return -ENOMEM;
	int64_t done = is_whole ? sr_xts_encrypt_into(disk->xts, stored, buf, bytes, offset) : 0; /* without the lock */
	pthread_mutex_lock(&disk->lock);
	if (disk->fenced && !may_pass_fence)
		done = -EROFS;
	if (!is_whole && done == 0)
		done = sr_note_changed(disk, widen(disk, stored, buf, bytes, offset));
	if (done == 0)
		done = done_of_range(sr_write_stored(disk, stored, around.bytes, around.offset), around, bytes);
	sr_unlock(disk);
	return_buffer(disk, stored, around.bytes);
	return done;
}

/* Zero a part of one line. */
static int zero_in_line(struct sr_disk *disk, uint64_t offset, uint64_t bytes)
{
	static const uint8_t zeros[SR_XTS_LINE_BYTES];
	uint8_t line[SR_XTS_LINE_BYTES];
	int64_t done = sr_note_changed(disk, widen(disk, line, zeros, bytes, offset));

	if (done == 0)
		done = sr_write_stored(disk, line, sizeof(line), offset / sizeof(line) * sizeof(line));
	return done < 0 ? (int)done : 0;
}

int sr_encrypted_zero(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes)
{
	uint64_t before = -offset % SR_XTS_LINE_BYTES, after;
	int rc = 0;

	if (before > bytes)
		before = bytes;
	after = (bytes - before) % SR_XTS_LINE_BYTES;
	if (before)
		rc = zero_in_line(disk, offset, before);
	if (rc == 0 && bytes > before + after)
		rc = sr_zero_stored(disk, type, offset + before, bytes - before - after);
	if (rc == 0 && after)
		rc = zero_in_line(disk, offset + (bytes - after), after);
	return rc;
}

#define _GNU_SOURCE
#include "disk/undo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/siterig.h"

enum { BLOCKS_READ_AT_ONCE = 16, ENTRY_BYTES = 2 * sizeof(struct sr_undo_block), SLOTS_MIN = 256 };

static size_t slot_of(const struct sr_undo *undo, uint64_t block)
{
	size_t at = (size_t)(block * 0x9e3779b97f4a7c15u >> 20) & (undo->capacity - 1);

	while (undo->slots[at].sectors && undo->slots[at].block != block)
		at = (at + 1) & (undo->capacity - 1);
	return at;
}

const struct sr_undo_block *sr_undo_find(const struct sr_undo *undo, uint64_t block)
{
	if (undo->capacity == 0)
		return NULL;
	const struct sr_undo_block *found = &undo->slots[slot_of(undo, block)];
	return found->sectors ? found : NULL;
}

/* Make space for one more block; at most half of the slots are used. */
static int grow(struct sr_undo *undo)
{
	if (2 * (undo->count + 1) <= undo->capacity)
		return 0;
	struct sr_undo old = *undo;

	undo->capacity = old.capacity ? 2 * old.capacity : SLOTS_MIN;
	undo->slots = calloc(undo->capacity, sizeof(*undo->slots));
	if (!undo->slots) {
		*undo = old;
		return -ENOMEM;
	}
	for (size_t i = 0; i < old.capacity; i++)
		if (old.slots[i].sectors)
			undo->slots[slot_of(undo, old.slots[i].block)] = old.slots[i];
	free(old.slots);
	return 0;
}

static int add(struct sr_undo *undo, uint64_t block, const uint8_t *bytes, uint8_t sectors)
{
	uint8_t *data = NULL;
	int rc = grow(undo);

	if (rc)
		return rc;
	if (!sr_is_zero(bytes, SR_BLOCK_BYTES)) {
		data = malloc(SR_BLOCK_BYTES);
		if (!data)
			return -ENOMEM;
		memcpy(data, bytes, SR_BLOCK_BYTES);
	}
	undo->slots[slot_of(undo, block)] = (struct sr_undo_block){.block = block, .data = data, .sectors = sectors};
	undo->count++;
	undo->bytes += ENTRY_BYTES + (data ? SR_BLOCK_BYTES : 0);
	return 0;
}

/* The sectors of a block that a range changes. */
static uint8_t sectors_of(uint64_t block, uint64_t offset, uint64_t end)
{
	uint64_t start = block * SR_BLOCK_BYTES;
	uint64_t from = offset > start ? (offset - start) / SR_UNDO_SECTOR_BYTES : 0;
	uint64_t upto = end - start < SR_BLOCK_BYTES ? (end - start + SR_UNDO_SECTOR_BYTES - 1) / SR_UNDO_SECTOR_BYTES
						     : SR_UNDO_SECTORS;
	return (uint8_t)((1u << upto) - (1u << from));
}

/* Read the old bytes of up to `count` blocks; past the end of the disk are zeros. */
static int read_blocks(struct sr_layer *layer, struct sr_xts *xts, uint64_t block, uint64_t count, uint8_t *buf)
{
	uint64_t start = block * SR_BLOCK_BYTES, bytes = count * SR_BLOCK_BYTES, size = sr_layer_bytes(layer);
	uint64_t inside = start >= size ? 0 : (bytes < size - start ? bytes : size - start);

	memset(buf + inside, 0, bytes - inside);
	int rc = inside ? sr_layer_read(layer, buf, inside, start) : 0;
	return rc == 0 && xts ? sr_xts_decrypt(xts, buf, inside, start) : rc;
}

/* The next blocks of a range that have data, `from` to `upto` - 1; `from` is `upto` if there are none. */
static int find_data(struct sr_layer *layer, uint64_t *from, uint64_t *upto)
{
	uint64_t end = *upto * SR_BLOCK_BYTES;
	int64_t data = sr_layer_seek(layer, *from * SR_BLOCK_BYTES, SEEK_DATA);

	if (data == -ENXIO || (data >= 0 && (uint64_t)data >= end)) {
		*from = *upto;
		return 0;
	}
	int64_t hole = data < 0 ? data : sr_layer_seek(layer, (uint64_t)data, SEEK_HOLE);
	if (hole < 0)
		return (int)hole;
	*from = (uint64_t)data / SR_BLOCK_BYTES;
	if ((uint64_t)hole < end)
		*upto = ((uint64_t)hole + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES;
	return 0;
}

/* Keep the blocks `first` to `upto` - 1, as far as the range from `offset` to `end` changes them. */
static int keep_blocks(struct sr_undo *undo, struct sr_layer *layer, struct sr_xts *xts, uint64_t first, uint64_t upto,
		       uint64_t offset, uint64_t end, uint64_t bytes_max)
{
	uint8_t buf[BLOCKS_READ_AT_ONCE * SR_BLOCK_BYTES];
	uint64_t have = 0; /* blocks from here are in `buf` .. */
	uint64_t have_upto = 0;
	int rc = 0;

	if (upto - first > bytes_max / ENTRY_BYTES)
		return -ENOSPC;
	for (uint64_t block = first; block < upto && rc == 0; block++) {
		uint8_t sectors = sectors_of(block, offset, end);
		struct sr_undo_block *found = (struct sr_undo_block *)sr_undo_find(undo, block);

		if (found) {
			found->sectors |= sectors;
			continue;
		}
		if (undo->bytes + ENTRY_BYTES + SR_BLOCK_BYTES > bytes_max)
			return -ENOSPC;
		if (block >= have_upto) {
			have = block;
			have_upto = upto - block < BLOCKS_READ_AT_ONCE ? upto : block + BLOCKS_READ_AT_ONCE;
			rc = read_blocks(layer, xts, have, have_upto - have, buf);
		}
		if (rc == 0)
			rc = add(undo, block, buf + (block - have) * SR_BLOCK_BYTES, sectors);
	}
	return rc;
}

int sr_undo_keep(struct sr_undo *undo, struct sr_layer *layer, struct sr_xts *xts, uint64_t offset, uint64_t bytes, int to_zeros,
		 uint64_t bytes_max)
{
	uint64_t end = offset + bytes, from = offset / SR_BLOCK_BYTES, last = (end + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES;
	int rc = 0;

	if (bytes == 0)
		return 0;
	while (from < last && rc == 0) {
		uint64_t upto = last;

		if (to_zeros)
			rc = find_data(layer, &from, &upto);
		if (rc == 0)
			rc = keep_blocks(undo, layer, xts, from, upto, offset, end, bytes_max);
		from = upto;
	}
	return rc;
}

void sr_undo_clear(struct sr_undo *undo)
{
	for (size_t i = 0; i < undo->capacity; i++)
		if (undo->slots[i].sectors)
			free(undo->slots[i].data);
	free(undo->slots);
	*undo = (struct sr_undo){0};
}

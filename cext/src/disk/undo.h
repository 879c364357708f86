/* Old bytes of a disk: the blocks as they were before the first change since some moment, in memory.
 *
 * One thread at a time, with the lock of the disk.
 */
#ifndef SITERIG_UNDO_H
#define SITERIG_UNDO_H

#include <stddef.h>
#include <stdint.h>

#include "base/xts.h"
#include "layers/layer.h"

enum { SR_UNDO_SECTOR_BYTES = 512, SR_UNDO_SECTORS = SR_BLOCK_BYTES / SR_UNDO_SECTOR_BYTES };

struct sr_undo_block {
	uint64_t block;
	uint8_t *data;   /* NULL: zeros */
	uint8_t sectors; /* one bit for each sector that changed; 0: an empty slot */
};

struct sr_undo {
	struct sr_undo_block *slots;
	size_t capacity, count;
	uint64_t bytes; /* of memory */
};

/* Keep the blocks of a range that is about to change, unless they are kept already. A change `to_zeros` changes no hole, so
 * holes take neither time nor memory then: a discard may have the size of the disk. `xts` decrypts the bytes of the layer;
 * NULL: they are not encrypted. -ENOSPC: the map would take more than `bytes_max`; -ENOMEM; or the error of the layer. Blocks
 * before the failing one are kept then. */
int sr_undo_keep(struct sr_undo *undo, struct sr_layer *layer, struct sr_xts *xts, uint64_t offset, uint64_t bytes, int to_zeros,
		 uint64_t bytes_max);

/* The kept block with this number, or NULL. */
const struct sr_undo_block *sr_undo_find(const struct sr_undo *undo, uint64_t block);
void sr_undo_clear(struct sr_undo *undo);

#endif

/* The base of a managed disk: a file of which each block of SR_BLOCK_BYTES has a pair of CRC32C in a file of sums,
 * that of the block and that of what it becomes.  Past the end of either file are zeros; a block counts as whole.
 *
 * It is changed in three steps, with a sync of what was written after each: so at every moment, and after every
 * kill, what a block holds is one of the two; only a block that a kill found in the midst of step 2 may be neither,
 * until step 2 is done again.
 *
 * `ranges`: `count` pairs (offset, bytes) of whole blocks, in order.  Nothing is written past the end of the layer.
 * Functions return 0, or -errno; after an error, a step is done again as a whole.  One thread changes the sums;
 * several may run step 2 at the same time, each for ranges of its own that lie behind those of the one before.
 */
#ifndef SITERIG_BASE_UPDATE_H
#define SITERIG_BASE_UPDATE_H

#include <stddef.h>
#include <stdint.h>

#include "layers/layer.h"

/* 1: the second sum of each block := that of what `from` reads there.  Reads only blocks of which it is not known. */
int sr_base_prepare_checksums(struct sr_layer *from, int sums_fd, const uint64_t *ranges, size_t count);

/* 2: each block := what `from` reads there; one of zeros becomes a hole.  Also to fill a file without sums.  Up to two
 * blocks between two ranges, if the host has them in memory and they are no zeros, are written again as they are: the
 * medium gets fewer and longer writes, and what a power loss tears of them is the same on both sides. */
int sr_base_copy_blocks(struct sr_layer *from, int fd, const uint64_t *ranges, size_t count);

/* 3: the first sum of each block := the second. */
int sr_base_commit_checksums(int sums_fd, const uint64_t *ranges, size_t count);

struct sr_bad_block {
	uint64_t offset;
	uint32_t right, becomes, found;
};

/* Reads the blocks, and tells of the first `room` that have neither sum; gives how many it told of.  A fold may run. */
int64_t sr_base_check(int fd, int sums_fd, const uint64_t *ranges, size_t count, struct sr_bad_block *bad, size_t room);

#endif

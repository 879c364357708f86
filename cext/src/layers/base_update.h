/* Updates of the base of a managed disk. The base is a file; a second file has a pair of CRC32C sums for each block of
 * SR_BLOCK_BYTES: the sum of the block, and the sum of its new contents. Past the end of either file are zeros; a block
 * counts as whole.
 *
 * An update is three steps, with a sync of the written file after each. So at every moment, and after every kill, a
 * block matches one of its two sums. Only a block that a kill interrupted in step 2 can match neither, until step 2 is
 * repeated.
 *
 * `ranges` are `count` pairs (offset, bytes) of whole blocks, sorted. Nothing is written past the end of the layer.
 * Functions return 0, or -errno; after an error the whole step is repeated. One thread changes the sums. Several
 * threads may run step 2 at the same time, each for ranges of its own that come after those of the thread before.
 */
#ifndef SITERIG_BASE_UPDATE_H
#define SITERIG_BASE_UPDATE_H

#include <stddef.h>
#include <stdint.h>

#include "layers/layer.h"

/* Step 1: set the second sum of each block to that of its new contents, which `from` reads. Blocks with a known sum
 * are not read. */
int sr_base_prepare_checksums(struct sr_layer *from, int sums_fd, const uint64_t *ranges, size_t count);

/* Step 2: write the new contents of each block, which `from` reads; a block of zeros becomes a hole. It can also
 * fill a file without sums. Up to two blocks between two ranges are written again unchanged, if the host has them in
 * memory and they are not zeros: the medium gets fewer and longer writes. If a power loss tears such a block, its
 * old and new contents are the same. */
int sr_base_copy_blocks(struct sr_layer *from, int fd, const uint64_t *ranges, size_t count);

/* Step 3: set the first sum of each block to the second. */
int sr_base_commit_checksums(int sums_fd, const uint64_t *ranges, size_t count);

struct sr_bad_block {
	uint64_t offset;
	uint32_t right, becomes, found;
};

/* Read the blocks, and report the first `room` blocks that match neither sum; returns their number. A compaction may
 * run meanwhile. */
int64_t sr_base_check(int fd, int sums_fd, const uint64_t *ranges, size_t count, struct sr_bad_block *bad, size_t room);

#endif

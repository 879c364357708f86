/* A disk at one position: a layer of extents over zeros; every byte is checked when it is read.
 *
 * Any number of threads may read, concurrently with a compaction (layers/base_update.h) that writes to the base.
 */
#ifndef SITERIG_VIEW_H
#define SITERIG_VIEW_H

#include <stddef.h>
#include <stdint.h>

#include "index/extent_map.h"
#include "layers/layer.h"

enum { SR_FAULTS_KEPT = 16 };

/* A file with extents, and the CRC32C sums of its pieces: 4 bytes each from the start of file `sums_fd` (-1: of `fd`
 * itself). `paired` (the base): two sums each, of which either may match, because a compaction may be writing the
 * piece; past the end of such a file are zeros. `fd` -1: no extent has this source. */
struct sr_source {
	int fd, sums_fd, paired;
};

/* A piece that was not returned: its offset on the disk and in its source, and its sums (of a pair the second), if
 * they are the reason. `error` is EIO for a wrong or unreadable sum, ENODATA for a missing one, or the host's error. */
struct sr_fault {
	uint64_t offset, source_offset;
	int32_t source, error;
	uint32_t expected, found;
};

/* The faults of a view: their number, and the last ones; the object may outlive the view. */
struct sr_faults;
struct sr_faults *sr_faults_new(void);
void sr_faults_put(struct sr_faults *faults);
/* Return the number of faults since the view was created; the last SR_FAULTS_KEPT, oldest first, are stored in
 * `last`. */
uint64_t sr_faults_seen(struct sr_faults *faults, struct sr_fault *last);

/* Create a view of the extents of the merged `map`, which may be changed or freed afterwards. The layer owns the
 * sources' `fd`s, and closes the `sums_fd`s. NULL: errno is the reason (EINVAL: an extent has no valid source); then
 * nothing is owned or closed. */
struct sr_layer *sr_layer_view(struct sr_extents *map, const struct sr_source *sources, size_t count, uint64_t bytes,
			       struct sr_faults *faults);

#endif

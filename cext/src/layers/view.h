/* A disk as it was: a layer of extents over nothing, of which every byte that is read is checked.
 *
 * Reads may run in any number of threads, beside a fold (layers/base_update.h) that writes to the base.
 */
#ifndef SITERIG_VIEW_H
#define SITERIG_VIEW_H

#include <stddef.h>
#include <stdint.h>

#include "index/extent_map.h"
#include "layers/layer.h"

enum { SR_FAULTS_KEPT = 16 };

/* A file that extents are of, and the CRC32C of its pieces: 4 bytes each from the start of file `sums_fd` (-1: of
 * `fd` itself).  `paired` (the base): two each, of which either may be right, for a fold may just be changing the
 * piece; what lies past the end of such a file is zeros.  `fd` -1: no extent is of it. */
struct sr_source {
	int fd, sums_fd, paired;
};

/* A piece that was not served: where it is on the disk and in its source, and its checksums (of a pair the second),
 * if they are what is wrong.  `error`: EIO for that, or if they cannot be read; ENODATA if there is none; or what
 * the host said. */
struct sr_fault {
	uint64_t offset, source_offset;
	int32_t source, error;
	uint32_t expected, found;
};

/* How many there were, and the last of them; a view has one, which may outlive it. */
struct sr_faults;
struct sr_faults *sr_faults_new(void);
void sr_faults_put(struct sr_faults *faults);
/* Gives how many there were since the view was made; the last SR_FAULTS_KEPT, oldest first, are in `last`. */
uint64_t sr_faults_seen(struct sr_faults *faults, struct sr_fault *last);

/* The extents of the merged `map`, which may be changed or freed afterwards.  Owns the sources' `fd`s, and closes the
 * `sums_fd`s; if NULL (errno says why; EINVAL: an extent is of none of the sources) it owns nothing, and has closed
 * nothing. */
struct sr_layer *sr_layer_view(struct sr_extents *map, const struct sr_source *sources, size_t count, uint64_t bytes,
			       struct sr_faults *faults);

#endif

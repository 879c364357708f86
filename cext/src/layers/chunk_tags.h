/* Keyed tags of many chunks of a layer, computed by several threads (base/hasher.c). */
#ifndef SITERIG_CHUNK_TAGS_H
#define SITERIG_CHUNK_TAGS_H

#include <stddef.h>
#include <stdint.h>

#include "base/siterig.h"
#include "layers/layer.h"

enum { SR_TAG_CHUNK_BYTES_MAX = 1 << 20 };

/* `count` chunks from chunk `first`. */
struct sr_chunk_span {
	uint64_t first, count;
};

/* Bytes `start` .. `end` of a disk. */
struct sr_data_range {
	uint64_t start, end;
};

struct sr_chunk_tag {
	uint64_t chunk;
	uint8_t tag[SR_TAG_BYTES];
};

struct sr_tag_request {
	const uint8_t *key;                /* SR_KEY_BYTES */
	uint64_t chunk_bytes;              /* a multiple of SR_BLOCK_BYTES, at most SR_TAG_CHUNK_BYTES_MAX */
	const struct sr_chunk_span *spans; /* ascending, without overlap */
	size_t span_count;
	const struct sr_data_range *data; /* ascending, without overlap: the rest is holes. NULL: ask the layer */
	size_t data_count;
	int threads;
	int unreadable_differs; /* a chunk that cannot be read gets a random tag, instead of ending the call */
};

/* Store the tags of all chunks of the spans that are not zeros, in ascending order, at most `tags_max` of them. `*upto`
 * becomes the first chunk that is not covered, UINT64_MAX if all are. Holes are not read, and chunks in them cost
 * nothing. Returns the number of tags, or -errno (-EIO also if libcrypto failed). */
int64_t sr_layer_tags(struct sr_layer *layer, const struct sr_tag_request *request, struct sr_chunk_tag *tags,
		      size_t tags_max, uint64_t *upto);

#endif

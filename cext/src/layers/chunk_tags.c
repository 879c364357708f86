/* Keyed tags of many chunks of a layer.
 *
 * First the chunks with data are listed, each with its ranges of data; then threads take chunk after chunk from that
 * list. Neither step visits a chunk that is a hole as a whole.
 */
#define _GNU_SOURCE
#include "layers/chunk_tags.h"

#include <errno.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hasher.h"

enum { THREADS_MAX = 16 };

_Static_assert((int)SR_TAG_CHUNK_BYTES_MAX == (int)SR_HASH_CHUNK_BYTES_MAX, "a chunk has a map of fixed size");
_Static_assert((int)SR_BLOCK_BYTES == (int)SR_HASH_BLOCK_BYTES, "blocks are those of layers");

/* The ranges of data of a layer, one after the other. */
struct walk {
	struct sr_layer *layer;
	const struct sr_data_range *data;
	size_t data_count, next;
};

/* Find the first range that ends after `offset`. Returns 1, 0 if there is none, or -errno. */
static int find_data(struct walk *walk, uint64_t offset, struct sr_data_range *range)
{
	if (walk->data) {
		while (walk->next < walk->data_count && walk->data[walk->next].end <= offset)
			walk->next++;
		if (walk->next == walk->data_count)
			return 0;
		*range = walk->data[walk->next];
		return 1;
	}
	int64_t start = sr_layer_seek(walk->layer, offset, SEEK_DATA);
	int64_t end = start < 0 ? start : sr_layer_seek(walk->layer, (uint64_t)start, SEEK_HOLE);
	if (end < 0)
		return end == -ENXIO ? 0 : (int)end;
	*range = (struct sr_data_range){(uint64_t)start, (uint64_t)end};
	return 1;
}

struct chunk {
	uint64_t number;
	size_t first_range;
};

struct list {
	struct chunk *chunks;
	size_t chunk_count;
	struct sr_data_range *ranges;
	size_t range_count, range_space;
};

static int add_range(struct list *list, uint64_t start, uint64_t end)
{
	if (list->range_count == list->range_space) {
		size_t space = list->range_space ? 2 * list->range_space : 256;
		void *grown = realloc(list->ranges, space * sizeof(*list->ranges));
		if (!grown)
			return -ENOMEM;
		list->ranges = grown;
		list->range_space = space;
	}
	list->ranges[list->range_count++] = (struct sr_data_range){start, end};
	return 0;
}

/* List the chunks of one span. Returns 0, or -errno. `*upto` is set if the list is full. */
static int list_span(struct walk *walk, const struct sr_tag_request *request, const struct sr_chunk_span *span,
		     struct list *list, size_t chunks_max, uint64_t *upto)
{
	const uint64_t bytes = request->chunk_bytes, last = span->first + span->count;
	uint64_t at = span->first * bytes;
	struct sr_data_range range;
	int rc;

	while ((rc = find_data(walk, at, &range)) == 1) {
		uint64_t number = (range.start > at ? range.start : at) / bytes, end = (number + 1) * bytes;
		if (number >= last)
			return 0;
		if (list->chunk_count == chunks_max) {
			*upto = number;
			return 0;
		}
		list->chunks[list->chunk_count++] = (struct chunk){number, list->range_count};
		at = number * bytes > at ? number * bytes : at;
		do {
			rc = add_range(list, range.start > at ? range.start : at, range.end < end ? range.end : end);
			if (rc || range.end >= end)
				break;
			at = range.end;
			rc = find_data(walk, at, &range);
			if (rc == 1)
				rc = 0;
			else if (rc == 0)
				return 0;
		} while (rc == 0 && range.start < end);
		if (rc)
			return rc;
		at = end;
	}
	return rc;
}

struct job {
	struct sr_layer *layer;
	const struct sr_tag_request *request;
	const struct list *list;
	struct sr_chunk_tag *tags;
	size_t next; /* atomic */
	int error;   /* atomic: the first one */
};

/* Returns 0, 1 if the chunk cannot be read, or -errno. */
static int hash_chunk(const struct job *job, struct sr_hasher *hasher, uint8_t *buf, size_t place)
{
	const struct list *list = job->list;
	const struct chunk *chunk = &list->chunks[place];
	const uint64_t base = chunk->number * job->request->chunk_bytes;
	size_t i = chunk->first_range;
	size_t last = place + 1 < list->chunk_count ? list->chunks[place + 1].first_range : list->range_count;

	if (sr_hasher_begin(hasher, chunk->number))
		return -EIO;
	while (i < last) {
		/* whole blocks, so ranges that share a block are one run */
		uint64_t start = (list->ranges[i].start - base) / SR_BLOCK_BYTES * SR_BLOCK_BYTES, end = start;
		for (; i < last && (list->ranges[i].start - base) / SR_BLOCK_BYTES * SR_BLOCK_BYTES <= end; i++)
			end = (list->ranges[i].end - base + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES * SR_BLOCK_BYTES;
		int rc = sr_layer_read(job->layer, buf, end - start, base + start);
		if (rc)
			return job->request->unreadable_differs && rc != -ENOMEM ? 1 : rc;
		if (sr_hasher_add(hasher, start / SR_BLOCK_BYTES, buf, end - start))
			return -EIO;
	}
	return sr_hasher_finish(hasher, job->tags[place].tag) ? -EIO : 0;
}

static void *work(void *argument)
{
	struct job *job = argument;
	struct sr_hasher hasher;
	uint8_t *buf = malloc(job->request->chunk_bytes);
	int rc = sr_hasher_init(&hasher, job->request->key, job->request->chunk_bytes) || !buf ? -ENOMEM : 0;

	while (rc == 0 && !__atomic_load_n(&job->error, __ATOMIC_RELAXED)) {
		size_t place = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
		if (place >= job->list->chunk_count)
			break;
		job->tags[place].chunk = job->list->chunks[place].number;
		rc = hash_chunk(job, &hasher, buf, place);
		if (rc == 1)
			rc = RAND_bytes(job->tags[place].tag, SR_TAG_BYTES) == 1 ? 0 : -EIO;
	}
	sr_hasher_end(&hasher);
	free(buf);
	if (rc)
		__atomic_store_n(&job->error, rc, __ATOMIC_RELAXED);
	return NULL;
}

static void run(struct job *job, int threads)
{
	pthread_t others[THREADS_MAX];
	int started = 0;

	while (started < THREADS_MAX && started + 1 < threads && (size_t)started + 1 < job->list->chunk_count &&
	       pthread_create(&others[started], NULL, work, job) == 0)
		started++;
	work(job);
	while (started > 0)
		pthread_join(others[--started], NULL);
}

int64_t sr_layer_tags(struct sr_layer *layer, const struct sr_tag_request *request, struct sr_chunk_tag *tags,
		      size_t tags_max, uint64_t *upto)
{
	static const uint8_t zeros[SR_TAG_BYTES];
	struct walk walk = {layer, request->data, request->data_count, 0};
	struct list list = {.chunks = malloc((tags_max ? tags_max : 1) * sizeof(*list.chunks))};
	int64_t rc = list.chunks ? 0 : -ENOMEM;

	*upto = UINT64_MAX;
	for (size_t i = 0; i < request->span_count && rc == 0 && *upto == UINT64_MAX; i++)
		rc = list_span(&walk, request, &request->spans[i], &list, tags_max, upto);
	if (rc == 0) {
		struct job job = {.layer = layer, .request = request, .list = &list, .tags = tags};
		run(&job, request->threads);
		rc = job.error;
		for (size_t i = 0; rc >= 0 && i < list.chunk_count; i++)
			if (memcmp(tags[i].tag, zeros, SR_TAG_BYTES) != 0)
				tags[rc++] = tags[i];
	}
	free(list.chunks);
	free(list.ranges);
	return rc;
}

#include "layers/decrypted.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "layers/layer_internal.h"

struct decrypted {
	struct sr_layer layer;
	struct sr_layer *lower;
	struct sr_xts *xts;
};

static void free_decrypted(struct sr_layer *layer)
{
	struct decrypted *own = (struct decrypted *)layer;

	sr_layer_free(own->lower);
	sr_xts_put(own->xts);
	free(own);
}

static int read_lines(const struct decrypted *own, void *buf, uint64_t bytes, uint64_t offset)
{
	int rc = sr_layer_read(own->lower, buf, bytes, offset);
	return rc ? rc : sr_xts_decrypt(own->xts, buf, bytes, offset);
}

/* Read bytes within one line, which is read completely. */
static int read_in_line(const struct decrypted *own, char *buf, uint64_t bytes, uint64_t offset)
{
	char line[SR_XTS_LINE_BYTES];
	uint64_t before = offset % sizeof(line);
	int rc = read_lines(own, line, sizeof(line), offset - before);

	memcpy(buf, line + before, bytes);
	return rc;
}

static int read_decrypted(struct sr_layer *layer, void *into, uint64_t bytes, uint64_t offset)
{
	const struct decrypted *own = (const struct decrypted *)layer;
	uint64_t before = -offset % SR_XTS_LINE_BYTES, after;
	char *buf = into;
	int rc = 0;

	if (before > bytes)
		before = bytes;
	after = (bytes - before) % SR_XTS_LINE_BYTES;
	if (before)
		rc = read_in_line(own, buf, before, offset);
	if (rc == 0 && bytes > before + after)
		rc = read_lines(own, buf + before, bytes - before - after, offset + before);
	if (rc == 0 && after)
		rc = read_in_line(own, buf + (bytes - after), after, offset + (bytes - after));
	return rc;
}

static int64_t seek_decrypted(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	struct sr_layer *lower = ((struct decrypted *)layer)->lower;
	return sr_ops_of(lower)->seek(lower, offset, end, hole);
}

static const struct sr_layer_ops decrypted_ops = {
	.free = free_decrypted,
	.read = read_decrypted,
	.seek = seek_decrypted,
};

struct sr_layer *sr_layer_decrypted(struct sr_layer *lower, struct sr_xts *xts)
{
	struct decrypted *own = malloc(sizeof(*own));

	if (!own) {
		errno = ENOMEM;
		return NULL;
	}
	*own = (struct decrypted){
		.layer = {.ops = &decrypted_ops, .bytes = sr_layer_bytes(lower)}, .lower = lower, .xts = sr_xts_share(xts)};
	return &own->layer;
}

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

static int read_lines(struct sr_layer *lower, struct sr_xts *xts, void *buf, uint64_t bytes, uint64_t offset)
{
	int rc = sr_layer_read(lower, buf, bytes, offset);
	return rc ? rc : sr_xts_decrypt(xts, buf, bytes, offset);
}

/* Read bytes within one line, which is read completely. */
static int read_in_line(struct sr_layer *lower, struct sr_xts *xts, char *buf, uint64_t bytes, uint64_t offset)
{
	char line[SR_XTS_LINE_BYTES];
	uint64_t before = offset % sizeof(line);
	int rc = read_lines(lower, xts, line, sizeof(line), offset - before);

	memcpy(buf, line + before, bytes);
	return rc;
}

int sr_layer_read_decrypted(struct sr_layer *lower, struct sr_xts *xts, void *into, uint64_t bytes, uint64_t offset)
{
	uint64_t before = -offset % SR_XTS_LINE_BYTES, after;
	char *buf = into;
	int rc = 0;

	if (before > bytes)
		before = bytes;
	after = (bytes - before) % SR_XTS_LINE_BYTES;
	if (before)
		rc = read_in_line(lower, xts, buf, before, offset);
	if (rc == 0 && bytes > before + after)
		rc = read_lines(lower, xts, buf + before, bytes - before - after, offset + before);
	if (rc == 0 && after)
		rc = read_in_line(lower, xts, buf + (bytes - after), after, offset + (bytes - after));
	return rc;
}

static int read_decrypted(struct sr_layer *layer, void *into, uint64_t bytes, uint64_t offset)
{
	const struct decrypted *own = (const struct decrypted *)layer;

	return sr_layer_read_decrypted(own->lower, own->xts, into, bytes, offset);
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

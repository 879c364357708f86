/* The last page of a file, mapped for reading: it disappears when the file is truncated before it. A load detects
 * that within 10 ns, fstat(2) takes 200 to 500 ns. For one thread at a time. */
#ifndef SITERIG_EDGE_H
#define SITERIG_EDGE_H

#include <stdint.h>

struct sr_edge {
	const uint32_t *at; /* NULL: not mapped */
	uint64_t offset;
};

/* Map the last page of a file of this length, unless it is mapped already. A file of one page, or a file that cannot
 * be mapped, has no edge. */
void sr_edge_map(struct sr_edge *edge, int fd, uint64_t bytes);
void sr_edge_unmap(struct sr_edge *edge);

/* 1: the file is not truncated before `end`. 0: it is, or that is unknown: there is no edge, or `end` lies after its
 * begin. */
int sr_edge_is_there(const struct sr_edge *edge, uint64_t end);

#endif

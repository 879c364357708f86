/* The last page of a file, mapped to be read: it is gone when the file is cut before it.  A load finds that out within 10 ns, where
 * fstat(2) takes 200 to 500.  One thread at a time. */
#ifndef SITERIG_EDGE_H
#define SITERIG_EDGE_H

#include <stdint.h>

struct sr_edge {
	const uint32_t *at; /* NULL: there is none */
	uint64_t offset;
};

/* Of a file of so many bytes, unless it is mapped already.  There is none of a file of one page, or if it cannot be mapped. */
void sr_edge_map(struct sr_edge *edge, int fd, uint64_t bytes);
void sr_edge_unmap(struct sr_edge *edge);

/* 1: the file is not cut before `end`.  0: it is, or that cannot be told: there is no edge, or `end` lies behind where it begins. */
int sr_edge_is_there(const struct sr_edge *edge, uint64_t end);

#endif

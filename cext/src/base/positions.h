/* The counter from which every record of every disk of a host gets its position. Any thread.
 *
 * Fault contract: a position is in the mapped file before it is used, so after a kill no position is drawn twice. If
 * the file is truncated, or its medium fails, the counter continues in memory: no position is drawn twice while the
 * process lives, and sr_positions_lost returns 1.
 */
#ifndef SITERIG_POSITIONS_H
#define SITERIG_POSITIONS_H

#include <stdint.h>

struct sr_positions;

/* `fd` is the file (owned), which begins with the newest position; -1: no file, the counter begins at 0. NULL: errno
 * is the reason. */
struct sr_positions *sr_positions_new(int fd);
void sr_positions_free(struct sr_positions *positions); /* drawn positions are then durable or lost */

uint64_t sr_position_draw(struct sr_positions *positions);
uint64_t sr_position_value(const struct sr_positions *positions);
void sr_position_advance(struct sr_positions *positions, uint64_t at_least); /* all later positions are higher than `at_least` */

/* 1: drawn positions may be missing in the file. */
int sr_positions_lost(const struct sr_positions *positions);

#endif

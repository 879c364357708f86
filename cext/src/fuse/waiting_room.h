/* Threads for requests that may take long, because they wait for a fault rule or for a disk: as many as there are such
 * requests at once, up to a limit, so that they keep no other request waiting. A thread is started when it is needed.
 *
 * Any thread.
 */
#ifndef SITERIG_WAITING_ROOM_H
#define SITERIG_WAITING_ROOM_H

struct sr_waiting_room;

enum { SR_WAITING_MAX = 1024 };

/* NULL: no memory. */
struct sr_waiting_room *sr_waiting_room_new(void);

/* Call `function` with `item` on another thread. Beyond SR_WAITING_MAX threads, items wait for one that is free. -ENOMEM;
 * -EAGAIN: there is no thread at all, and none can be started. */
int sr_waiting_room_put(struct sr_waiting_room *room, void (*function)(void *item), void *item);

/* Wait until all items are done, and free the room. No item is put any more. */
void sr_waiting_room_free(struct sr_waiting_room *room);

#endif

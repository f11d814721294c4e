/* SPDX-License-Identifier: GPL-2.0 */
#ifndef HEARTBEAT_H
#define HEARTBEAT_H

struct heartbeat_state {
	unsigned long beats;
};

void heartbeat_read(struct heartbeat_state *to);

#endif

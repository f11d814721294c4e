// SPDX-License-Identifier: GPL-2.0
/*
 * A module that counts beats of a timer, and lets other modules read the count.  Small, but with what a build check
 * needs: a symbol that others use (kABI), a parameter, and a line in the kernel's log when it comes and goes.
 */
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/timer.h>

#include "heartbeat.h"

static unsigned int period_ms = 100;
module_param(period_ms, uint, 0444);
MODULE_PARM_DESC(period_ms, "time between two beats");

static struct heartbeat_state state;
static struct timer_list timer;

static void beat(struct timer_list *unused)
{
	state.beats++;
	mod_timer(&timer, jiffies + msecs_to_jiffies(period_ms));
}

/* How often the heart has beaten since the module was loaded. */
void heartbeat_read(struct heartbeat_state *to)
{
	*to = state;
}
EXPORT_SYMBOL_GPL(heartbeat_read);

static int __init heartbeat_init(void)
{
	timer_setup(&timer, beat, 0);
	mod_timer(&timer, jiffies + 1);
	pr_info("heartbeat: every %u ms\n", period_ms);
	return 0;
}

static void __exit heartbeat_exit(void)
{
	del_timer_sync(&timer);
	pr_info("heartbeat: stopped after %lu beats\n", state.beats);
}

module_init(heartbeat_init);
module_exit(heartbeat_exit);
MODULE_DESCRIPTION("Counts beats of a timer");
MODULE_LICENSE("GPL");

/* QEMU plugin: count guest instructions, and write the count down whenever the guest makes a marking system call.
 *
 *   gcc -O2 -fPIC -shared -DPLUGIN_API=1 -o count.so count.c
 *   qemu-aarch64 -plugin ./count.so,out=FILE …
 *
 * The count is exact for one guest thread. Declarations are those of QEMU's plugin interface, version 1 (QEMU 4.2
 * to 8) and 2 (QEMU 9): https://www.qemu.org/docs/master/devel/tcg-plugins.html
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                                 enum qemu_plugin_cb_flags, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                                 void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t,
                                                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

#define VISIBLE __attribute__((visibility("default")))
#define MARK 0xC0DE /* no system call has this number: the kernel says ENOSYS, and nothing happens */

VISIBLE int qemu_plugin_version = PLUGIN_API;

static uint64_t executed;
static FILE *out;

static void count_block(unsigned vcpu, void *instructions)
{
    executed += (uintptr_t)instructions;
}

static void translate_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    qemu_plugin_register_vcpu_tb_exec_cb(block, count_block, QEMU_PLUGIN_CB_NO_REGS,
                                         (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void see_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                        uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    if (number == MARK) {
        fprintf(out, "%" PRIu64 "\n", executed);
        fflush(out);
    }
}

VISIBLE int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || !(out = fopen(argv[0] + 4, "w")))
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_block);
    qemu_plugin_register_vcpu_syscall_cb(id, see_syscall);
    return 0;
}

/* QEMU plugin: count guest instructions, and write the count down whenever the guest makes a marking system call.
 *
 *   gcc -O2 -fPIC -shared -DPLUGIN_API=1 -o count.so count.c
 *   qemu-aarch64 -plugin ./count.so,out=FILE[,level=BYTES]… …
 *
 * A mark is a line: instructions so far, then for each level, the nearest first, the lines that missed it so far. Levels
 * hold data only, by virtual address: WAYS lines a set, the least recently used goes, a write brings its line in, and
 * nothing is prefetched. A cache of another size than a power of two of sets is rounded down to one.
 *
 * The count is exact for one guest thread. Declarations are those of QEMU's plugin interface, version 1 (QEMU 4.2
 * to 8) and 2 (QEMU 9): https://www.qemu.org/docs/master/devel/tcg-plugins.html
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                                 enum qemu_plugin_cb_flags, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                                 void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t,
                                                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
                                             void (*)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *),
                                             enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);

#define VISIBLE __attribute__((visibility("default")))
#define MARK 0xC0DE /* no system call has this number: the kernel says ENOSYS, and nothing happens */

VISIBLE int qemu_plugin_version = PLUGIN_API;

#define LINE_SHIFT 6 /* lines of 64 bytes */
#define WAYS 16
#define MAX_LEVELS 4

struct level {
    uint64_t sets, misses;
    uint64_t *lines; /* [sets][WAYS], the most recently used first; a line is its address >> LINE_SHIFT, plus one */
};

static uint64_t executed;
static FILE *out;
static struct level levels[MAX_LEVELS];
static size_t num_levels;

/* Bring a line to the front of its set; return whether it was there. */
static int touch(struct level *level, uint64_t line)
{
    uint64_t *set = level->lines + (line & (level->sets - 1)) * WAYS;
    size_t way = 0;
    while (way < WAYS - 1 && set[way] != line)
        way++;
    int hit = set[way] == line;
    memmove(set + 1, set, way * sizeof *set);
    set[0] = line;
    return hit;
}

static void access_memory(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *unused)
{
    uint64_t end = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
    for (uint64_t line = (address >> LINE_SHIFT) + 1; line <= (end >> LINE_SHIFT) + 1; line++)
        for (size_t i = 0; i < num_levels && !touch(&levels[i], line); i++)
            levels[i].misses++;
}

static int add_level(uint64_t bytes)
{
    struct level *level = &levels[num_levels];
    uint64_t sets = 1;
    if (num_levels == MAX_LEVELS || bytes >> LINE_SHIFT < WAYS)
        return 0;
    while (sets * 2 * WAYS <= bytes >> LINE_SHIFT)
        sets *= 2;
    level->sets = sets;
    level->lines = calloc(sets * WAYS, sizeof *level->lines);
    num_levels++;
    return level->lines != NULL;
}

static void count_block(unsigned vcpu, void *instructions)
{
    executed += (uintptr_t)instructions;
}

static void translate_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    qemu_plugin_register_vcpu_tb_exec_cb(block, count_block, QEMU_PLUGIN_CB_NO_REGS,
                                         (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
    for (size_t i = 0; num_levels && i < qemu_plugin_tb_n_insns(block); i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), access_memory, QEMU_PLUGIN_CB_NO_REGS,
                                         QEMU_PLUGIN_MEM_RW, NULL);
}

static void see_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                        uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    if (number == MARK) {
        fprintf(out, "%" PRIu64, executed);
        for (size_t i = 0; i < num_levels; i++)
            fprintf(out, " %" PRIu64, levels[i].misses);
        fputc('\n', out);
        fflush(out);
    }
}

VISIBLE int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0)
            out = fopen(argv[i] + 4, "w");
        else if (strncmp(argv[i], "level=", 6) != 0 || !add_level(strtoull(argv[i] + 6, NULL, 10)))
            return -1;
    }
    if (out == NULL)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_block);
    qemu_plugin_register_vcpu_syscall_cb(id, see_syscall);
    return 0;
}

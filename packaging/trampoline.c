/* Is each program in /opt/mfcp, and executes the frozen program PROGRAM with the same arguments, fds, signals and working
 * directory.
 *
 * The environment is meant for the image, and not for the libraries of /opt/mfcp: LD_PRELOAD names libraries for another libc,
 * PYTHONHOME names another Python, and LC_ALL names a locale of the image. So the environment is hidden from libc, boot loader and
 * Python: the top bit of the first byte of each variable is flipped, and reveal() in start.py flips it back. Four variables are
 * added. With the first two the boot loader does not restart itself, and start.py reads the others.
 *
 * SIGINT is blocked until start.py has restored its default action, because Python's own action would end in a traceback.
 *
 * In the kit of a fuse device the file may have the set-uid bit, since AppImages take no other helper. The program gives up what the
 * bit gives before it does anything else: nothing that it executes runs with the rights of the file's owner.
 *
 * The program is freestanding, since the image may have no libc, and since its start must take no time.
 */
#include <asm/signal.h>
#include <asm/unistd.h>

#if defined(__x86_64__)
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call start\n");

static long system_call(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x0, sp\n bl start\n");

static long system_call(long number, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#error "written for amd64 and arm64"
#endif

#define NAME_MAX 4096UL

static const char failed[] = NAME ": " PROGRAM " cannot be started: the folder mfcp must lie at " PLACE "\n";

static const char kept[] = NAME ": the set-uid bit of this file cannot be given up\n";

__attribute__((noreturn)) static void fail(const char *text, long length)
{
    system_call(__NR_write, 2, (long)text, length, 0);
    system_call(__NR_exit, EXIT_CODE, 0, 0, 0);
    __builtin_unreachable();
}

static void give_up_set_uid(void)
{
    long uid = system_call(__NR_getuid, 0, 0, 0, 0), gid = system_call(__NR_getgid, 0, 0, 0, 0);

    if (system_call(__NR_getegid, 0, 0, 0, 0) != gid && system_call(__NR_setresgid, gid, gid, gid, 0))
        fail(kept, sizeof kept - 1);
    if (system_call(__NR_geteuid, 0, 0, 0, 0) != uid && system_call(__NR_setresuid, uid, uid, uid, 0))
        fail(kept, sizeof kept - 1);
}

/* The kernel has put argc, argv[], NULL, envp[], NULL on the `stack`. */
__attribute__((noreturn, used)) void start(long *stack)
{
    char **argv = (char **)(stack + 1), **envp = argv + stack[0] + 1;
    long count = 0;

    give_up_set_uid();
    for (; envp[count]; count++)
        if (envp[count][0])
            envp[count][0] ^= 0x80;

    unsigned long interrupt = 1UL << (SIGINT - 1), before = 0;
    system_call(__NR_rt_sigprocmask, SIG_BLOCK, (long)&interrupt, (long)&before, sizeof before);

    /* libfuse's programs begin their messages with the name by which they were called. */
    static const char variable[] = "_PYI_NAME=";
    const char *called = stack[0] ? argv[0] : NAME;
    unsigned long begins = sizeof variable - 1, length = 0;
    while (called[length] && length < NAME_MAX)
        length++;
    char name[sizeof variable + NAME_MAX];
    for (unsigned long i = 0; i < begins; i++)
        name[i] = variable[i];
    for (unsigned long i = 0; i < length; i++)
        name[begins + i] = called[i];
    name[begins + length] = 0;

    const char *environment[count + 5];
    environment[0] = "_PYI_ARCHIVE_FILE=" PROGRAM;
    environment[1] = "_PYI_PARENT_PROCESS_LEVEL=-1";
    environment[2] = before & interrupt ? "_PYI_SIGINT=blocked" : "_PYI_SIGINT=";
    environment[3] = name;
    for (long i = 0; i <= count; i++)
        environment[4 + i] = envp[i];

    argv[0] = PROGRAM; /* if /proc is missing, the boot loader finds its own file by argv[0] */
    system_call(__NR_execve, (long)PROGRAM, (long)argv, (long)environment, 0);
    fail(failed, sizeof failed - 1);
}

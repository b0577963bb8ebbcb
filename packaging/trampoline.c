/* /opt/mfcp/fusermount3 and /opt/mfcp/fuse-starter: starts the frozen program PROGRAM, which has the same arguments, pid,
 * fds, signals and working directory.
 *
 * The environment is the image's, and not meant for the libraries of /opt/mfcp: LD_PRELOAD names libraries for another
 * libc, PYTHONHOME another Python, LC_ALL a locale of the image. So it is hidden from libc, boot loader and Python: each
 * variable gets the top bit of its first byte flipped, which reveal() in start.py flips back. Of the variables that are
 * added two spare the boot loader its usual restart.
 *
 * SIGINT is blocked until start.py has given it back its default action: Python's own would end in a traceback.
 *
 * Freestanding: it has to run where there is no libc, and its own start must cost nothing.
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

static const char failed[] = NAME ": " PROGRAM " cannot be started: the folder mfcp must lie at " PLACE "\n";

/* `stack` is what the kernel left there: argc, argv[], NULL, envp[], NULL. */
__attribute__((noreturn, used)) void start(long *stack)
{
    char **argv = (char **)(stack + 1), **envp = argv + stack[0] + 1;
    long count = 0;

    for (; envp[count]; count++)
        if (envp[count][0])
            envp[count][0] ^= 0x80;

    unsigned long interrupt = 1UL << (SIGINT - 1), before = 0;
    system_call(__NR_rt_sigprocmask, SIG_BLOCK, (long)&interrupt, (long)&before, sizeof before);

    const char *environment[count + 4];
    environment[0] = "_PYI_ARCHIVE_FILE=" PROGRAM;
    environment[1] = "_PYI_PARENT_PROCESS_LEVEL=-1";
    environment[2] = before & interrupt ? "_PYI_SIGINT=blocked" : "_PYI_SIGINT=";
    for (long i = 0; i <= count; i++)
        environment[3 + i] = envp[i];

    argv[0] = PROGRAM; /* where /proc is missing the boot loader finds itself by it */
    system_call(__NR_execve, (long)PROGRAM, (long)argv, (long)environment, 0);
    system_call(__NR_write, 2, (long)failed, sizeof failed - 1, 0);
    system_call(__NR_exit, EXIT_CODE, 0, 0, 0);
    __builtin_unreachable();
}

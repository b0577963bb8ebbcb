// Stands in for ros3fs: the same command line, and fuse_main of libfuse 3, as there. It reads the bucket once, by MinIO's
// client, and serves that copy.
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int files; // the folder with the copy

static const char *beneath(const char *path) {
    return path[1] ? path + 1 : ".";
}

static int get_attributes(const char *path, struct stat *found, struct fuse_file_info *info) {
    (void)info;
    return fstatat(files, beneath(path), found, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int list(const char *path, void *names, fuse_fill_dir_t add, off_t offset, struct fuse_file_info *info,
                enum fuse_readdir_flags flags) {
    (void)offset, (void)info, (void)flags;
    int fd = openat(files, beneath(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (!folder)
        return -errno;
    for (struct dirent *entry; (entry = readdir(folder));)
        add(names, entry->d_name, NULL, 0, 0);
    closedir(folder);
    return 0;
}

static int open_file(const char *path, struct fuse_file_info *info) {
    if ((info->flags & O_ACCMODE) != O_RDONLY)
        return -EROFS;
    int fd = openat(files, beneath(path), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    info->fh = fd;
    return 0;
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)path;
    ssize_t got = pread(info->fh, buffer, size, offset);
    return got < 0 ? -errno : (int)got;
}

static int close_file(const char *path, struct fuse_file_info *info) {
    (void)path;
    close(info->fh);
    return 0;
}

static const struct fuse_operations operations = {
    .getattr = get_attributes, .readdir = list, .open = open_file, .read = read_file, .release = close_file,
};

struct settings {
    char *endpoint, *bucket, *cache;
};

static const struct fuse_opt options[] = {
    {"--endpoint=%s", offsetof(struct settings, endpoint), 0},
    {"--bucket_name=%s", offsetof(struct settings, bucket), 0},
    {"--cache_dir=%s", offsetof(struct settings, cache), 0},
    FUSE_OPT_END,
};

static int copy(const struct settings *settings) {
    char *key = getenv("AWS_ACCESS_KEY_ID"), *secret = getenv("AWS_SECRET_ACCESS_KEY"), *host, *source;
    if (!settings->endpoint || !settings->bucket || !settings->cache || !key || !secret ||
        strncmp(settings->endpoint, "http://", 7) || asprintf(&source, "bucket/%s", settings->bucket) < 0 ||
        asprintf(&host, "http://%s:%s@%s", key, secret, settings->endpoint + 7) < 0) {
        fprintf(stderr, "ros3fs: needs --endpoint=http://..., --bucket_name, --cache_dir, and AWS keys in the environment\n");
        return -1;
    }
    setenv("MC_HOST_bucket", host, 1);
    char *command[] = {"mc", "mirror", "--quiet", "--overwrite", source, settings->cache, NULL};
    pid_t child;
    int status = -1;
    if (posix_spawnp(&child, command[0], NULL, NULL, command, environ) == 0)
        waitpid(child, &status, 0);
    return status;
}

int main(int argc, char **argv) {
    struct fuse_args arguments = FUSE_ARGS_INIT(argc, argv);
    struct settings settings = {0};
    if (fuse_opt_parse(&arguments, &settings, options, NULL) || copy(&settings))
        return 1;
    files = open(settings.cache, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (files < 0) {
        perror(settings.cache);
        return 1;
    }
    return fuse_main(arguments.argc, arguments.argv, &operations, NULL);
}

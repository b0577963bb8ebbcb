/* A FUSE file system with one file, /hello, and with libfuse's own command line. Linked statically it runs where there
 * is nothing but the kernel; it also takes every mount option as it is, which programs with options of their own do not.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse.h>
#include <string.h>

static const char text[] = "hello from FUSE\n";

static int get_attributes(const char *path, struct stat *info, struct fuse_file_info *file)
{
    (void)file;
    memset(info, 0, sizeof *info);
    if (strcmp(path, "/") == 0) {
        info->st_mode = S_IFDIR | 0755;
        info->st_nlink = 2;
        return 0;
    }
    if (strcmp(path, "/hello") == 0) {
        info->st_mode = S_IFREG | 0555;
        info->st_nlink = 1;
        info->st_size = sizeof text - 1;
        return 0;
    }
    return -ENOENT;
}

static int list(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *file,
                enum fuse_readdir_flags flags)
{
    (void)path, (void)offset, (void)file, (void)flags;
    fill(buffer, ".", NULL, 0, 0);
    fill(buffer, "..", NULL, 0, 0);
    fill(buffer, "hello", NULL, 0, 0);
    return 0;
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *file)
{
    (void)path, (void)file;
    if (offset >= (off_t)(sizeof text - 1))
        return 0;
    if (size > sizeof text - 1 - offset)
        size = sizeof text - 1 - offset;
    memcpy(buffer, text + offset, size);
    return size;
}

static const struct fuse_operations operations = {.getattr = get_attributes, .readdir = list, .read = read_file};

int main(int argc, char **argv)
{
    return fuse_main(argc, argv, &operations, NULL);
}

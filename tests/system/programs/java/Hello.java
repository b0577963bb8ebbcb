import java.nio.file.Paths;

import jnr.ffi.Pointer;
import jnr.ffi.types.off_t;
import jnr.ffi.types.size_t;
import ru.serce.jnrfuse.ErrorCodes;
import ru.serce.jnrfuse.FuseFillDir;
import ru.serce.jnrfuse.FuseStubFS;
import ru.serce.jnrfuse.struct.FileStat;
import ru.serce.jnrfuse.struct.FuseFileInfo;

/** Serves one file that can only be read, by jnr-fuse: Hello MOUNTPOINT. */
public class Hello extends FuseStubFS {
    private static final byte[] CONTENT = "Hello World!\n".getBytes();

    @Override
    public int getattr(String path, FileStat found) {
        if (path.equals("/")) {
            found.st_mode.set(FileStat.S_IFDIR | 0755);
            found.st_nlink.set(2);
            return 0;
        }
        if (path.equals("/hello")) {
            found.st_mode.set(FileStat.S_IFREG | 0444);
            found.st_nlink.set(1);
            found.st_size.set(CONTENT.length);
            return 0;
        }
        return -ErrorCodes.ENOENT();
    }

    @Override
    public int readdir(String path, Pointer buffer, FuseFillDir fill, @off_t long offset, FuseFileInfo info) {
        for (String name : new String[] {".", "..", "hello"}) {
            fill.apply(buffer, name, null, 0);
        }
        return 0;
    }

    @Override
    public int read(String path, Pointer buffer, @size_t long size, @off_t long offset, FuseFileInfo info) {
        int length = (int) Math.max(0, Math.min(size, CONTENT.length - offset));
        buffer.put(0, CONTENT, (int) offset, length);
        return length;
    }

    public static void main(String[] arguments) {
        new Hello().mount(Paths.get(arguments[0]), true);
    }
}

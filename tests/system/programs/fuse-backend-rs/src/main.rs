//! One file, by fuse-backend-rs, the library of nydusd: hello-fuse-backend-rs [--auto-unmount] MOUNTPOINT. SIGTERM unmounts it.

use std::env;
use std::ffi::CStr;
use std::io;
use std::mem;
use std::path::Path;
use std::thread;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{OpenOptions, stat64};
use fuse_backend_rs::api::filesystem::{Context, DirEntry, Entry, FileSystem, ZeroCopyWriter};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::FuseSession;
use nix::sys::signal::{SigSet, Signal};

const CONTENT: &[u8] = b"Hello World!\n";
const ROOT: u64 = 1;
const FILE: u64 = 2;
const TTL: Duration = Duration::from_secs(1);

struct Hello;

fn attributes(inode: u64) -> stat64 {
    let mut found: stat64 = unsafe { mem::zeroed() };
    found.st_ino = inode;
    found.st_nlink = 1;
    if inode == FILE {
        found.st_mode = libc::S_IFREG | 0o444;
        found.st_size = CONTENT.len() as i64;
    } else {
        found.st_mode = libc::S_IFDIR | 0o755;
    }
    found
}

impl FileSystem for Hello {
    type Inode = u64;
    type Handle = u64;

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        if parent != ROOT || name != c"hello" {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        Ok(Entry { inode: FILE, attr: attributes(FILE), attr_timeout: TTL, entry_timeout: TTL, ..Default::default() })
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((attributes(inode), TTL))
    }

    fn open(&self, _: &Context, _: u64, _: u32, _: u32) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        Ok((None, OpenOptions::empty(), None))
    }

    fn read(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        writer: &mut dyn ZeroCopyWriter,
        _: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        writer.write(CONTENT.get(offset as usize..).unwrap_or_default())
    }

    fn readdir(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        if offset == 0 {
            add(DirEntry { ino: FILE, offset: 1, type_: libc::DT_REG as u32, name: b"hello" })?;
        }
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mountpoint = arguments.last().ok_or_else(|| io::Error::other("the mountpoint is missing"))?;
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.thread_block()?;

    let mut session = FuseSession::new_with_autounmount(
        Path::new(mountpoint),
        "hello",
        "",
        false,
        arguments[0] == "--auto-unmount",
    )
    .map_err(io::Error::other)?;
    session.mount().map_err(io::Error::other)?;
    let mut channel = session.new_channel().map_err(io::Error::other)?;
    thread::spawn(move || {
        let _ = stop.wait();
        let unmounted = session.umount().and_then(|()| session.wake());
        if let Err(error) = unmounted {
            eprintln!("{error}");
        }
    });
    let server = Server::new(Hello);
    // An error, too, is how it learns that its file system has been unmounted.
    while let Ok(Some((reader, writer))) = channel.get_request() {
        if server.handle_message(reader, writer.into(), None, None).is_err() {
            break;
        }
    }
    Ok(())
}

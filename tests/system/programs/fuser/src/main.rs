//! One file, by fuser: hello-fuser [--auto-unmount] [--clone-fd] MOUNTPOINT.
//!
//! SIGTERM unmounts it; with --auto-unmount it ends the program, and the unmounting is left to fusermount3.
//! With --clone-fd each of four threads has a clone of the fd.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request, Session, SessionACL,
};
use nix::sys::signal::{SigSet, Signal};

const CONTENT: &[u8] = b"Hello World!\n";
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(1);

struct Hello;

fn attributes(ino: INodeNo) -> FileAttr {
    let is_file = ino == FILE;
    FileAttr {
        ino,
        size: if is_file { CONTENT.len() as u64 } else { 0 },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_file { FileType::RegularFile } else { FileType::Directory },
        perm: if is_file { 0o444 } else { 0o755 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for Hello {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == "hello" {
            reply.entry(&TTL, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(CONTENT.get(offset as usize..).unwrap_or_default());
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            let _ = reply.add(FILE, 1, FileType::RegularFile, "hello");
        }
        reply.ok();
    }
}

fn main() -> io::Result<()> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let mut mountpoint = None;
    for argument in env::args_os().skip(1) {
        if argument == "--auto-unmount" {
            config.mount_options.push(MountOption::AutoUnmount);
        } else if argument == "--clone-fd" {
            config.n_threads = Some(4);
            config.clone_fd = true;
        } else {
            mountpoint = Some(argument);
        }
    }
    let mountpoint = mountpoint.ok_or_else(|| io::Error::other("the mountpoint is missing"))?;

    let mut stop = SigSet::empty();
    if !config.mount_options.contains(&MountOption::AutoUnmount) {
        stop.add(Signal::SIGTERM);
    }
    stop.thread_block()?;
    let mut session = Session::new(Hello, mountpoint, &config)?;
    let mut mount = session.unmount_callable();
    thread::spawn(move || {
        let _ = stop.wait();
        if let Err(error) = mount.unmount() {
            eprintln!("unmount: {error}");
        }
    });
    session.run()
}

//! One file, by fuse3: hello-fuse3 MOUNTPOINT. SIGTERM unmounts it.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::num::NonZeroU32;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use fuse3::raw::prelude::*;
use fuse3::{FileType, Inode, MountOptions, Result};
use futures_util::stream::{self, Stream};
use tokio::signal::unix::{SignalKind, signal};

const CONTENT: &[u8] = b"Hello World!\n";
const ROOT: Inode = 1;
const FILE: Inode = 2;
const TTL: Duration = Duration::from_secs(1);

struct Hello;

fn attributes(ino: Inode) -> FileAttr {
    let is_file = ino == FILE;
    FileAttr {
        ino,
        size: if is_file { CONTENT.len() as u64 } else { 0 },
        blocks: 1,
        atime: UNIX_EPOCH.into(),
        mtime: UNIX_EPOCH.into(),
        ctime: UNIX_EPOCH.into(),
        kind: if is_file { FileType::RegularFile } else { FileType::Directory },
        perm: if is_file { 0o444 } else { 0o755 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
    }
}

impl Filesystem for Hello {
    async fn init(&self, _: Request) -> Result<ReplyInit> {
        Ok(ReplyInit::new(NonZeroU32::new(16 * 1024).unwrap()))
    }

    async fn destroy(&self, _: Request) {}

    async fn lookup(&self, _: Request, parent: Inode, name: &OsStr) -> Result<ReplyEntry> {
        if parent != ROOT || name != "hello" {
            return Err(libc::ENOENT.into());
        }
        Ok(ReplyEntry { ttl: TTL, attr: attributes(FILE), generation: 0 })
    }

    async fn getattr(&self, _: Request, inode: Inode, _: Option<u64>, _: u32) -> Result<ReplyAttr> {
        Ok(ReplyAttr { ttl: TTL, attr: attributes(inode) })
    }

    async fn open(&self, _: Request, _: Inode, _: u32) -> Result<ReplyOpen> {
        Ok(ReplyOpen { fh: 0, flags: 0 })
    }

    async fn read(&self, _: Request, _: Inode, _: u64, offset: u64, _: u32) -> Result<ReplyData> {
        Ok(Bytes::from_static(CONTENT.get(offset as usize..).unwrap_or_default()).into())
    }

    // Container engines ask for it before they bind a file system.
    async fn statfs(&self, _: Request, _: Inode) -> Result<ReplyStatFs> {
        Ok(ReplyStatFs { blocks: 1, bfree: 0, bavail: 0, files: 1, ffree: 0, bsize: 512, namelen: 255, frsize: 512 })
    }

    async fn opendir(&self, _: Request, _: Inode, _: u32) -> Result<ReplyOpen> {
        Ok(ReplyOpen { fh: 0, flags: 0 })
    }

    async fn readdir<'a>(
        &'a self,
        _: Request,
        _: Inode,
        _: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        let entry = DirectoryEntry { inode: FILE, kind: FileType::RegularFile, name: "hello".into(), offset: 1 };
        Ok(ReplyDirectory { entries: stream::iter((offset == 0).then_some(Ok(entry))) })
    }

    async fn readdirplus<'a>(
        &'a self,
        _: Request,
        _: Inode,
        _: u64,
        offset: u64,
        _: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>> {
        let entry = DirectoryEntryPlus {
            inode: FILE,
            generation: 0,
            kind: FileType::RegularFile,
            name: "hello".into(),
            offset: 1,
            attr: attributes(FILE),
            entry_ttl: TTL,
            attr_ttl: TTL,
        };
        Ok(ReplyDirectoryPlus { entries: stream::iter((offset == 0).then_some(Ok(entry))) })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let mountpoint = env::args_os().nth(1).ok_or_else(|| io::Error::other("the mountpoint is missing"))?;
    let mut stop = signal(SignalKind::terminate())?;
    let mut session = Session::new(MountOptions::default()).mount_with_unprivileged(Hello, mountpoint).await?;
    tokio::select! {
        ended = &mut session => ended,
        _ = stop.recv() => session.unmount().await,
    }
}

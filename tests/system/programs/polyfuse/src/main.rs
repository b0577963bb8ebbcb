//! One file, by polyfuse: hello-polyfuse [--auto-unmount] MOUNTPOINT. SIGTERM ends it at once, as polyfuse has no handler of signals.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use polyfuse::reply::{AttrOut, EntryOut, FileAttr, OpenOut, ReaddirOut, StatfsOut};
use polyfuse::{KernelConfig, Operation, Session};

const CONTENT: &[u8] = b"Hello World!\n";
const ROOT: u64 = 1;
const FILE: u64 = 2;
const TTL: Duration = Duration::from_secs(1);

fn fill(attributes: &mut FileAttr, inode: u64) {
    attributes.ino(inode);
    attributes.nlink(1);
    if inode == FILE {
        attributes.mode(libc::S_IFREG | 0o444);
        attributes.size(CONTENT.len() as u64);
    } else {
        attributes.mode(libc::S_IFDIR | 0o755);
    }
}

fn main() -> io::Result<()> {
    let mut config = KernelConfig::default();
    let mut mountpoint = None;
    for argument in env::args_os().skip(1) {
        if argument == "--auto-unmount" {
            config.auto_unmount(true);
        } else {
            mountpoint = Some(PathBuf::from(argument));
        }
    }
    let mountpoint = mountpoint.ok_or_else(|| io::Error::other("the mountpoint is missing"))?;
    let session = Session::mount(mountpoint, config)?;
    while let Some(request) = session.next_request()? {
        match request.operation().map_err(io::Error::other)? {
            Operation::Lookup(asked) if asked.parent() == ROOT && asked.name() == "hello" => {
                let mut answer = EntryOut::default();
                fill(answer.attr(), FILE);
                answer.ino(FILE);
                answer.ttl_attr(TTL);
                answer.ttl_entry(TTL);
                request.reply(answer)?;
            }
            Operation::Lookup(_) => request.reply_error(libc::ENOENT)?,
            Operation::Getattr(asked) => {
                let mut answer = AttrOut::default();
                fill(answer.attr(), asked.ino());
                answer.ttl(TTL);
                request.reply(answer)?;
            }
            Operation::Open(_) | Operation::Opendir(_) => request.reply(OpenOut::default())?,
            Operation::Read(asked) => request.reply(CONTENT.get(asked.offset() as usize..).unwrap_or_default())?,
            Operation::Readdir(asked) => {
                let mut answer = ReaddirOut::new(asked.size() as usize);
                if asked.offset() == 0 {
                    answer.entry(OsStr::new("hello"), FILE, libc::DT_REG as u32, 1);
                }
                request.reply(answer)?;
            }
            Operation::Statfs(_) => request.reply(StatfsOut::default())?,
            _ => request.reply_error(libc::ENOSYS)?,
        }
    }
    Ok(())
}

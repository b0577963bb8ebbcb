//! mount-s3 from the libraries that mountpoint-s3 is made of: all that touches FUSE is theirs. What is missing is the
//! command line, which its authors do not publish as a crate; here it is what this project's examples use of it.

use anyhow::{Result, anyhow, bail};
use mountpoint_s3_client::config::{AddressingStyle, S3ClientAuthConfig};
use mountpoint_s3_client::user_agent::UserAgent;
use mountpoint_s3_fs::data_cache::DataCacheConfig;
use mountpoint_s3_fs::fuse::config::{FuseOptions, FuseSessionConfig, MountPoint};
use mountpoint_s3_fs::memory::{CandidateSize, MINIMUM_MEM_LIMIT, PagedPool};
use mountpoint_s3_fs::s3::config::{ClientConfig, MemoryLimitSetting, PartConfig, Region, TargetThroughputSetting};
use mountpoint_s3_fs::s3::{Bucket, Prefix, S3Path};
use mountpoint_s3_fs::{MountpointConfig, Runtime, S3FilesystemConfig, Superblock, SuperblockConfig};

const PART: usize = 8 << 20;
const THREADS: usize = 16;

#[derive(Default)]
struct Arguments {
    options: FuseOptions,
    endpoint: Option<String>,
    region: Option<String>,
    path_style: bool,
    places: Vec<String>,
}

impl Arguments {
    fn read(mut given: impl Iterator<Item = String>) -> Result<Self> {
        let mut read = Self::default();
        while let Some(argument) = given.next() {
            let mut value = || given.next().ok_or_else(|| anyhow!("{argument} needs a value"));
            match argument.as_str() {
                "--foreground" | "-f" => {} // It always stays there.
                "--debug" | "-d" => {} // It has no log.
                "--auto-unmount" => read.options.auto_unmount = true,
                "--allow-other" => read.options.allow_other = true,
                "--read-only" => read.options.read_only = true,
                "--force-path-style" => read.path_style = true,
                "--endpoint-url" => read.endpoint = Some(value()?),
                "--region" => read.region = Some(value()?),
                other if other.starts_with('-') => bail!("this stand-in does not know {other}"),
                _ => read.places.push(argument),
            }
        }
        Ok(read)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::read(std::env::args().skip(1))?;
    let [bucket, directory] = arguments.places.as_slice() else {
        bail!("usage: mount-s3 [OPTION...] BUCKET DIRECTORY");
    };
    let bucket = S3Path::new(Bucket::new(bucket.as_str())?, Prefix::empty());
    let read_only = arguments.options.read_only;
    let fuse = FuseSessionConfig::new(MountPoint::new(directory)?, arguments.options, THREADS)?;
    let client = ClientConfig {
        region: Region::new_user_specified(arguments.region.unwrap_or("us-east-1".into())),
        endpoint_url: arguments.endpoint,
        addressing_style: if arguments.path_style { AddressingStyle::Path } else { AddressingStyle::Automatic },
        dual_stack: false,
        transfer_acceleration: false,
        auth_config: S3ClientAuthConfig::Default,
        requester_pays: false,
        expected_bucket_owner: None,
        throughput_target: TargetThroughputSetting::Default,
        bind: None,
        part_config: PartConfig::with_part_size(PART).validate(MemoryLimitSetting::Default(MINIMUM_MEM_LIMIT))?,
        user_agent: UserAgent::new(None),
        tls_config: None,
    };
    let pool = PagedPool::config().with_candidate_sizes([CandidateSize::new(PART)]).with_minimum_memory_limit().build();
    let client = client.create_client(pool.clone(), Some(&bucket))?;
    let runtime = Runtime::new(client.event_loop_group());
    let files = S3FilesystemConfig { read_only, ..Default::default() };
    let superblock = SuperblockConfig { cache_config: files.cache_config.clone(), s3_personality: files.s3_personality };
    let superblock = Superblock::new(client.clone(), bucket, superblock);
    let session = MountpointConfig::new(fuse, files, DataCacheConfig::default())?;
    session.create_fuse_session(superblock, client, runtime, pool)?.join()
}

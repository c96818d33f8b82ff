//! What to open: a URL and, for S3, how to get in.

use std::fmt;
use std::path::PathBuf;

use mainstay_model::VaultUrl;

/// Where a store is and how to get in.
#[derive(Clone, Debug)]
pub struct StoreSpec {
    /// `file:PATH` or `s3://BUCKET[/PREFIX]`.
    pub url: VaultUrl,
    /// Relative folders begin here.
    pub base_dir: PathBuf,
    /// An S3 server other than Amazon's: `https://host:port`.
    pub endpoint: Option<String>,
    /// The bucket's region; `us-east-1` where there is none.
    pub region: Option<String>,
    /// The access key's id; `None`: `AWS_ACCESS_KEY_ID`.
    pub access_key: Option<Secret>,
    /// The access key's secret; `None`: `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: Option<Secret>,
}

impl StoreSpec {
    /// A folder.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self {
            url: VaultUrl::File(path.into()),
            base_dir: PathBuf::from("/"),
            endpoint: None,
            region: None,
            access_key: None,
            secret_key: None,
        }
    }
}

/// Text that must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

//! What went wrong with a vault, in the terms that callers branch on.

use mainstay_engine as engine;
use mainstay_store as store;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the vault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store beneath failed, after its retries.
    #[error("the vault's store failed")]
    Store(#[from] store::Error),
    /// An object is missing, or its bytes are not those that were written. Its content was given to nobody.
    #[error("`{object}` is damaged: {reason}")]
    Damaged {
        /// The object's key.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This home holds keys, but not those of this vault.
    #[error("the keys in {home} are not those of vault {vault}")]
    WrongKey {
        /// The vault's id.
        vault: String,
        /// The folder of the keys.
        home: String,
    },
    /// This home holds no keys of this vault, and no identity to get them with.
    #[error("{home} holds no keys of vault {vault}")]
    NoKeys {
        /// The vault's id.
        vault: String,
        /// The folder of the keys.
        home: String,
    },
    /// What was asked needs the recipients' identity, and this home has none: it can back up, list, prune and verify, but not restore.
    #[error("{home} holds no identity that can decrypt vault {vault}")]
    NoIdentity {
        /// The vault's id.
        vault: String,
        /// The folder of the keys.
        home: String,
    },
    /// There is no vault at that place.
    #[error("there is no vault in {store}")]
    NoVault {
        /// The store's name.
        store: String,
    },
    /// There is one already.
    #[error("there is a vault in {store} already")]
    VaultExists {
        /// The store's name.
        store: String,
    },
    /// The vault was written by a later Mainstay.
    #[error("the vault's format is version {version}, which this Mainstay does not know")]
    Version {
        /// What it says.
        version: u32,
    },
    /// There is no such snapshot, point or proof.
    #[error("there is no {0}")]
    NotFound(String),
    /// Somebody else does that now, and is alive.
    #[error("{lease} is held by {holder}")]
    Held {
        /// The lease's name.
        lease: String,
        /// Who holds it.
        holder: String,
    },
    /// We were taken for dead: somebody else may do that now.
    #[error("the lease {lease} was lost")]
    LeaseLost {
        /// The lease's name.
        lease: String,
    },
    /// What was asked makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// This machine: files, disks.
    #[error("{what}")]
    Io {
        /// Verb and object.
        what: String,
        /// What lay under it.
        source: std::io::Error,
    },
}

impl Error {
    /// The stable code of failures on the command line.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.kind.code(),
            Self::Damaged { .. } => "vault-damaged",
            Self::WrongKey { .. } => "vault-wrong-key",
            Self::NoKeys { .. } => "vault-no-keys",
            Self::NoIdentity { .. } => "vault-no-identity",
            Self::NoVault { .. } => "vault-missing",
            Self::VaultExists { .. } => "vault-exists",
            Self::Version { .. } => "vault-version",
            Self::NotFound(_) => "not-found",
            Self::Held { .. } => "lease-held",
            Self::LeaseLost { .. } => "lease-lost",
            Self::Invalid(_) => "invalid",
            Self::Io { .. } => "io",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Damaged { object, .. } if object == crate::format::FORMAT_KEY => {
                "put `format.json` back from a copy; if it is gone, `mainstay vault init` in a home with the vault's keys writes it anew".into()
            }
            Self::Damaged { .. } => {
                "run `mainstay backup verify` to see all that is damaged, and restore from another snapshot"
                    .into()
            }
            Self::WrongKey { home, .. } => {
                format!("put the identity of one of the vault's recipients into {home}/identity.txt (0600)")
            }
            Self::NoKeys { home, vault } => format!(
                "copy {home}/{vault}/host.key from a host that backs up to this vault, or put the identity of one of its recipients \
                 into {home}/identity.txt (0600)"
            ),
            Self::NoIdentity { home, .. } => {
                format!("put the identity of one of the vault's recipients into {home}/identity.txt (0600)")
            }
            Self::Version { .. } => "use the newer Mainstay that wrote it".into(),
            _ => return None,
        })
    }

    /// An input/output error of this machine.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// An object whose bytes are wrong.
    pub fn damaged(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), reason: reason.into() }
    }

    /// Whether the store has no such object.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind == store::Kind::NotFound)
    }
}

impl From<Error> for engine::Error {
    fn from(error: Error) -> Self {
        use engine::Kind;
        let kind = match &error {
            Error::Store(store) if store.kind == store::Kind::Deadline => Kind::Deadline,
            Error::Store(store) if store.kind == store::Kind::Unavailable => Kind::Unreachable,
            Error::Damaged { .. } => Kind::Damaged,
            Error::Invalid(_) | Error::NotFound(_) => Kind::Invalid,
            Error::WrongKey { .. } | Error::NoKeys { .. } | Error::NoIdentity { .. } => Kind::Refused,
            _ => Kind::Io,
        };
        let (what, hint) = (error.to_string(), error.hint());
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let mut converted = Self::new(kind, what);
        converted.hint = hint;
        match source {
            Some(source) => converted.source(source),
            None => converted,
        }
    }
}

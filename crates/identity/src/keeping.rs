//! Where a component keeps its identity.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use crate::{Identity, IdentityError};

/// The identity that a component has now, and its file.
pub struct Credentials {
    file: PathBuf,
    now: RwLock<Option<Identity>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.file.display())
    }
}

impl Credentials {
    /// Those in `file`: none before the component registered for the first time.
    ///
    /// # Errors
    /// [`IdentityError::File`]. What cannot be understood is not used: the next registration replaces it.
    pub fn open(file: &Path) -> Result<Credentials, IdentityError> {
        let file = file.to_path_buf();
        let now = match std::fs::read_to_string(&file) {
            Ok(text) => Identity::from_pem(&text).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(IdentityError::File { path: file, source }),
        };
        Ok(Credentials { file, now: RwLock::new(now) })
    }

    /// An identity that is not kept: it ends with the process.
    pub fn of(identity: Identity) -> Credentials {
        Credentials { file: PathBuf::new(), now: RwLock::new(Some(identity)) }
    }

    /// The identity, if there is one.
    pub fn now(&self) -> Option<Identity> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over another: connections that are open stay as they are.
    ///
    /// # Errors
    /// [`IdentityError::File`]; it is used nevertheless.
    pub fn replace(&self, identity: Identity) -> Result<(), IdentityError> {
        let text = identity.pem().to_string();
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
        let write = || {
            let fresh = self.file.with_extension("new");
            // A file that was left behind may be open to others: it is made anew.
            let _ = std::fs::remove_file(&fresh);
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &self.file)
        };
        write().map_err(|source| IdentityError::File { path: self.file.clone(), source })
    }
}

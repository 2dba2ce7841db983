//! What is read from an open directory.

use std::ffi::OsString;

use super::Filesystem;
use crate::{
    attributes::{self, Attributes, Kind},
    error::{Error, Result},
    opened::Opened,
};

impl Filesystem {
    /// The name at `position` of an open directory, counted from 0, and its type; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::BadHandle`] for what is no open directory.
    pub async fn listed(&self, opened: &Opened, position: u64) -> Result<Option<(OsString, Kind)>> {
        match opened {
            Opened::Directory(listing) => {
                let listed = listing.lock().await.at(position).await?;
                Ok(listed.map(|listed| (listed.name.into(), self.kind(&listed.entry))))
            }
            Opened::LayerDirectory { layer, names, .. } => {
                let Some((name, index)) = names.get(position as usize) else { return Ok(None) };
                let file = layer.tree.get(*index).ok_or(Error::NotFound)?;
                Ok(Some((name.clone(), attributes::kind_in_layer(file))))
            }
            _ => Err(Error::BadHandle),
        }
    }

    /// The same with its attributes, for which it is looked up. There are none of what went since the
    /// directory was read.
    ///
    /// # Errors
    /// As [`Filesystem::lookup`].
    pub async fn listed_plus(
        &self,
        opened: &Opened,
        position: u64,
    ) -> Result<Option<(OsString, Option<Attributes>)>> {
        let (name, attributes) = match opened {
            Opened::Directory(listing) => {
                let Some(listed) = listing.lock().await.at(position).await? else {
                    return Ok(None);
                };
                let found = self.lookup_entry(listed.entry, listed.meta).await;
                (listed.name.into(), found)
            }
            Opened::LayerDirectory { layer, digest, names } => {
                let Some((name, index)) = names.get(position as usize) else { return Ok(None) };
                (name.clone(), self.remember_in_layer(layer, digest.clone(), *index))
            }
            _ => return Err(Error::BadHandle),
        };
        match attributes {
            Ok(attributes) => Ok(Some((name, Some(attributes)))),
            Err(Error::NotFound) => Ok(Some((name, None))),
            Err(e) => Err(e),
        }
    }
}

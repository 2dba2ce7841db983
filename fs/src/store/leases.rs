//! `leases/`: who fetches which blob from the upstream. They save traffic, and nothing depends on them:
//! what a storage cannot create atomically may have two holders, and then is fetched twice.

use std::{future::ready, time::Duration};

use futures_util::{TryFutureExt, TryStreamExt};
use larder_layout::{Algorithm, Lease};
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{
    NAME_DEADLINE, PART_DEADLINE, SWEEP_DEADLINE, Storage, aside, leftovers::age, not_a_miss,
};
use crate::error::{Error, Result};

impl Storage {
    /// Takes a lease for `holder`.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is one.
    pub async fn take_lease(&self, lease: &Lease, holder: &str) -> Result<()> {
        let key = self.keys.lease(lease);
        let attributes = self.attributes.clone();
        let options = PutOptions { attributes, ..PutOptions::from(PutMode::Create) };
        let taken = async {
            let put = self.objects.put_opts(&key, holder.to_owned().into(), options).await;
            match put {
                Ok(_) => Ok(true),
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    Ok(false)
                }
                Err(e) => Err(not_a_miss(e)),
            }
        };
        match self.circuit.run(format!("create {key}"), NAME_DEADLINE, taken).await? {
            true => Ok(()),
            false => Err(Error::Exists),
        }
    }

    /// Who has a lease.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nobody has.
    pub async fn read_lease(&self, lease: &Lease) -> Result<String> {
        let key = self.keys.lease(lease);
        let get = self.objects.get_range(&key, 0..Lease::TARGET_MAX_BYTES as u64);
        let content = self.circuit.run(format!("read {key}"), NAME_DEADLINE, get).await?;
        String::from_utf8(content.into()).map_err(|source| {
            let source = StoreError::Generic { store: "lease", source: Box::new(source) };
            Error::storage(format!("read {key}"), source)
        })
    }

    /// Ends a lease, whoever has it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, if the storage tells.
    pub async fn end_lease(&self, lease: &Lease) -> Result<()> {
        let key = self.keys.lease(lease);
        let delete = self.objects.delete(&key);
        self.circuit.run(format!("remove {key}"), NAME_DEADLINE, delete).await
    }

    /// The names of the leases of an algorithm.
    pub async fn list_leases(&self, algorithm: Algorithm) -> Result<Vec<String>> {
        let prefix = self.keys.leases(algorithm);
        let list = self.objects.list_with_delimiter(Some(&prefix));
        let list = self.circuit.run(format!("list {prefix}"), PART_DEADLINE, list).await?;
        let names = list.objects.iter().filter_map(|object| object.location.filename());
        Ok(names.map(str::to_owned).collect())
    }

    /// Ends leases that are as old as `older_than`: their holders have died, and nobody wanted the blob
    /// since. Tells how many there were.
    ///
    /// # Errors
    /// As [`Storage::sweep_leftovers`].
    pub async fn sweep_leases(&self, older_than: Duration) -> Result<usize> {
        let prefix = self.keys.all_leases();
        let leases = self.objects.list(Some(&prefix));
        let old = leases.try_filter(|lease| ready(age(lease.last_modified) >= older_than));
        let swept = async {
            let old: Vec<_> = old.map_ok(|lease| lease.location).try_collect().await?;
            for lease in &old {
                match self.objects.delete(lease).await {
                    // Another node sweeps, too.
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(old.len())
        };
        aside("sweep leases", SWEEP_DEADLINE, swept.map_err(not_a_miss)).await
    }
}

//! `layers/<algorithm>/<hex>/…`: what each name in there is.

use std::{ffi::OsStr, sync::Arc};

use larder_layout::Digest;

use super::{Filesystem, REPOSITORY};
use crate::{
    attributes::{self, Attributes, Kind},
    error::{Error, Result},
    inodes::Node,
    layers::{
        Layer,
        tree::{Content, LayerFile, ROOT},
    },
    opened::Opened,
};

impl Filesystem {
    /// The root directory of a layer that exists. It is not unpacked before anyone looks into it: a listing
    /// of all layers would unpack them all.
    pub(super) fn layer_root(&self, digest: Digest) -> Attributes {
        let number = self.inodes.remember(Node::Layer(digest, ROOT));
        self.attributes_of_layer_root(number)
    }

    pub(super) fn attributes_of_layer_root(&self, number: u64) -> Attributes {
        let modified = self.started;
        Attributes { number, kind: Kind::Directory, size_bytes: 0, modified, validity: REPOSITORY }
    }

    pub(super) async fn lookup_in_layer(
        &self,
        digest: Digest,
        directory: u32,
        name: &OsStr,
    ) -> Result<Attributes> {
        let layer = self.layers.open(&digest).await?;
        let index = layer.tree.child(directory, name).ok_or(Error::NotFound)?;
        self.remember_in_layer(&layer, digest, index)
    }

    pub(super) fn remember_in_layer(
        &self,
        layer: &Layer,
        digest: Digest,
        index: u32,
    ) -> Result<Attributes> {
        let file = file(layer, index)?;
        let node = match &file.content {
            Content::Symlink(target) => Node::LayerLink(digest, index, target.clone()),
            _ => Node::Layer(digest, index),
        };
        let number = self.inodes.remember(node);
        Ok(attributes::in_layer(number, file))
    }

    pub(super) async fn attributes_in_layer(
        &self,
        number: u64,
        digest: &Digest,
        index: u32,
    ) -> Result<Attributes> {
        let layer = self.layers.open(digest).await?;
        Ok(attributes::in_layer(number, file(&layer, index)?))
    }

    pub(super) async fn open_in_layer(&self, digest: &Digest, index: u32) -> Result<Opened> {
        let layer = self.layers.open(digest).await?;
        match file(&layer, index)?.content {
            Content::Regular { offset, size_bytes } => {
                Ok(Opened::LayerFile { layer, start: offset, size_bytes })
            }
            Content::Directory(_) => Err(Error::IsDirectory),
            _ => Err(Error::Invalid("not a regular file")),
        }
    }

    pub(super) async fn opendir_in_layer(&self, digest: Digest, index: u32) -> Result<Opened> {
        let layer = self.layers.open(&digest).await?;
        let children = layer.tree.children(index).ok_or(Error::NotDirectory)?;
        let names = children.iter().map(|(name, index)| (name.clone(), *index)).collect();
        Ok(Opened::LayerDirectory { layer: Arc::clone(&layer), digest, names })
    }
}

fn file(layer: &Layer, index: u32) -> Result<&LayerFile> {
    layer.tree.get(index).ok_or(Error::NotFound)
}

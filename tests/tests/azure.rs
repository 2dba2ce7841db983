//! Azure Blob Storage: Microsoft's emulator, filled by Microsoft's library.

use larder_tests::{
    Azurite, Format, Image, Opened, Sandbox,
    distribution::{assert_served, stored},
};

/// A section as Distribution 3 takes it, with `more` in it.
fn section(service_url: &str, more: &str) -> String {
    format!(
        "azure: {{accountname: {}, accountkey: {}, container: {}, serviceurl: '{service_url}', \
         {more}}}",
        Azurite::ACCOUNT,
        Azurite::KEY,
        Azurite::CONTAINER,
    )
}

const DISTRIBUTION_2: &str = "";
const DISTRIBUTION_3: &str = "credentials: {type: shared_key}";

/// Every name begins with a slash in a container of Distribution 2, and none in one of 3.
#[test]
fn a_container_of_distribution_is_served() {
    let Some(sandbox) = Sandbox::enter(&Azurite::NEEDS) else { return };
    let azurite = Azurite::start(&sandbox);
    for (more, prefix) in [
        (DISTRIBUTION_2, "/"),
        (DISTRIBUTION_3, ""),
        ("credentials: {type: shared_key}, rootdirectory: /a/b/", "a/b/"),
        ("trimlegacyrootprefix: false, rootdirectory: a", "/a/"),
    ] {
        let image = Image::new(Format::Oci);
        azurite.fill(&stored(&image, prefix));
        let opened = Opened::open(&sandbox, &section(azurite.service_url(), more)).unwrap();
        assert_eq!(opened.check(), Ok(()), "{more}");
        assert_served(&opened, &image);
    }
}

#[test]
fn objects_are_put_read_listed_replaced_and_deleted() {
    let Some(sandbox) = Sandbox::enter(&Azurite::NEEDS) else { return };
    let azurite = Azurite::start(&sandbox);
    for more in [DISTRIBUTION_2, DISTRIBUTION_3] {
        Opened::open(&sandbox, &section(azurite.service_url(), more)).unwrap().exercise();
    }
    // And nothing is left of what was deleted. What was aborted the service removes after a week.
    let name = "docker/larder/test/one";
    let mut left = azurite.names();
    left.retain(|name| !name.ends_with("/two"));
    assert_eq!(left, [format!("/{name}"), name.to_owned()]);
}

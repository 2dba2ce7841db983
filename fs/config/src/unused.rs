//! The sections of Distribution that Larder makes no use of, and why.

use crate::section::Section;

/// Takes these sections: what would change who gets what is refused, the rest noted.
pub(crate) fn read(root: &mut Section<'_>) {
    root.refuse("reporting", "no errors are sent anywhere; watch the log, and remove it");
    root.section("notifications", |notifications| {
        notifications.refuse("endpoints", "no events are sent; remove it");
        notifications.note("events", "no events are sent");
    });
    root.section("compatibility", |compatibility| {
        compatibility.section("schema1", |schema1| {
            let why = "manifests of schema 1 are not served; rebuild those images, and remove it";
            schema1.refuse_when("enabled", true, why);
            schema1.note("signingkeyfile", "nothing is signed");
            schema1.note("trustkey", "nothing is signed");
        });
    });
    root.note("health", "Larder watches its storage itself and tells at /readyz");
    root.note("redis", "Larder keeps nothing in Redis");
    root.note("validation", "it is about pushes, and a cache takes none");
    root.note("policy", "it is about pushes, and a cache takes none");
}

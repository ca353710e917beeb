//! `cargo xtask image`: the container image of a server.
//!
//! The binary that everything else is tested with goes, without its debug information, onto a Debian base with the same C
//! library as this machine's. The base is pulled if a registry answers, else made from Debian packages by debootstrap, which
//! needs root. What is there already is used again.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, prerequisites};

/// What the image is called.
pub const IMAGE: &str = "understudy:dev";
/// A registry that has not answered by then is not there.
const PULL_TIMEOUT: Duration = Duration::from_secs(20);

/// Builds the image, and the binary and the base first.
///
/// # Errors
/// When there is no container engine, no base can be had, or the build fails.
pub fn build() -> Result<()> {
    prerequisites::for_containers()?;
    prerequisites::for_building()?;
    cargo::run(["build", "--workspace", "--bins"])?;
    let base = base()?;
    let context = cargo::target_dir().join("image");
    fresh(&context)?;
    fs::create_dir(context.join("data")).context("cannot make the image's data folder")?;
    let binary = context.join("understudy");
    cargo::checked(Command::new("strip").arg("-o").arg(&binary).arg(cargo::binary("understudy")))?;
    let dockerfile = cargo::workspace_root().join("docker/Dockerfile");
    // The classic builder is part of the engine; the newer one is a plugin that Debian does not have.
    let mut build = Command::new("docker");
    build.args(["build", "--quiet", "--tag", IMAGE, "--build-arg"]).arg(format!("BASE={base}"));
    build.arg("--file").arg(dockerfile).arg(&context).env("DOCKER_BUILDKIT", "0");
    cargo::checked(build.stdout(Stdio::from(std::io::stderr())))?;
    eprintln!("xtask: built {IMAGE} on {base}; start three nodes with: docker-compose -f docker/compose.yaml up -d");
    Ok(())
}

/// An empty folder.
fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// The name of a base image that is there.
fn base() -> Result<String> {
    let codename = debian_codename();
    let (pulled, made) = (format!("debian:{codename}-slim"), format!("understudy-base:{codename}"));
    if has_image(&pulled) || (!has_image(&made) && pull(&pulled)?) {
        return Ok(pulled);
    }
    if !has_image(&made) {
        make_base(&codename, &made)?;
    }
    Ok(made)
}

/// Of this machine, whose C library the binary was linked with; elsewhere that of the release it is tested on.
fn debian_codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    codename_in(&release).unwrap_or_else(|| "bookworm".to_owned())
}

fn codename_in(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"').to_owned())
    };
    let plain = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase());
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME")).flatten().filter(plain)
}

fn has_image(name: &str) -> bool {
    let mut inspect = Command::new("docker");
    inspect.args(["image", "inspect", name]).stdout(Stdio::null()).stderr(Stdio::null());
    inspect.status().is_ok_and(|status| status.success())
}

/// Whether it could be pulled in time.
fn pull(name: &str) -> Result<bool> {
    eprintln!("xtask: docker pull {name}");
    let mut pull = Command::new("docker");
    let mut pull = pull.args(["pull", "--quiet", name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let began = Instant::now();
    while began.elapsed() < PULL_TIMEOUT {
        if let Some(status) = pull.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    pull.kill().context("cannot end docker pull")?;
    pull.wait().context("cannot end docker pull")?;
    Ok(false)
}

/// Debian's smallest system, as an image.
fn make_base(codename: &str, name: &str) -> Result<()> {
    prerequisites::for_debootstrap()?;
    let root = cargo::target_dir().join("image-base");
    fresh(&root)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", "--include=ca-certificates,libstdc++6", codename]).arg(&root);
    debootstrap.args(mirror()).stdout(Stdio::from(std::io::stderr()));
    cargo::checked(&mut debootstrap)?;
    // Nothing is installed in it later.
    for unneeded in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"] {
        let dir = root.join(unneeded);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    eprintln!("xtask: docker import {name}");
    let mut tar = Command::new("tar").arg("-C").arg(&root).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
    let packed = tar.stdout.take().context("tar has no output")?;
    let imported = Command::new("docker").args(["import", "-", name]).stdin(packed).stdout(Stdio::null()).status()?;
    ensure!(tar.wait()?.success() && imported.success(), "the base system could not be made an image");
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}

/// Where this machine has its packages from, for debootstrap; none for debootstrap's own default.
fn mirror() -> Option<String> {
    let asked = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(ORIGIN)", "Created-By: Packages"])
        .output();
    mirror_in(&String::from_utf8_lossy(&asked.ok()?.stdout))
}

/// The first of `uri component origin` lines that is Debian's own main archive.
fn mirror_in(targets: &str) -> Option<String> {
    let lines = targets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_main = |words: &Vec<&str>| matches!(words[..], [uri, "main", "Debian"] if !uri.contains("security"));
    lines.filter(is_main).map(|words| words[0].to_owned()).next()
}

/// Refuses where there is no engine, with what to do.
///
/// # Errors
/// When none answers.
pub fn check_engine() -> Result<()> {
    let info = Command::new("docker").arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match info {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!("no container engine answers: start dockerd, or see that you may use it"),
        Err(error) => bail!("cannot run docker ({error}): install docker.io"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_this_machines_debian() {
        let bookworm = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename_in(bookworm).as_deref(), Some("bookworm"));
        assert_eq!(codename_in("ID=fedora\nVERSION_CODENAME=x\n"), None);
        assert_eq!(codename_in("ID=debian\nVERSION_CODENAME=\"../x\"\n"), None);
        assert_eq!(codename_in(""), None);
    }

    #[test]
    fn the_mirror_is_the_main_archive() {
        let targets = "http://mirror/debian-security/ main Debian\nhttp://mirror/other/ main Other\n\
                       http://mirror/debian/ contrib Debian\nhttp://mirror/debian/ main Debian\n";
        assert_eq!(mirror_in(targets).as_deref(), Some("http://mirror/debian/"));
        assert_eq!(mirror_in(""), None);
    }
}

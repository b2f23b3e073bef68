"""`grd-edge inspect`: what is in a bundle, and is it whole?"""

from __future__ import annotations

from grd_edge.cli.common import BundlePath, Json, print_json, print_rows


def inspect(bundle: BundlePath, json_: Json = False) -> None:
    """Verify a bundle and describe it."""
    from grd_edge.bundle import read_bundle

    opened = read_bundle(bundle)
    if json_:
        print_json({"bundle": opened.manifest, "decision": opened.decision})
        return
    manifest, fit = opened.manifest, (opened.decision or {}).get("fit", {})
    geometry, score = manifest["geometry"], manifest["score"]
    scale = f"shorter side {geometry['scale_px']} px" if geometry["scale_px"] else "native resolution"
    rows = {
        "name": manifest["name"],
        "files": ", ".join(f"{name} ({entry['bytes']:,} bytes)" for name, entry in manifest["files"].items()),
        "engines": ", ".join(f"{engine['target']}-{engine['precision']}" for engine in manifest["engines"]),
        "frames": f"{scale}, {geometry['channels']} channel(s), padding {geometry['padding']}",
        "patches": "{patch_h}x{patch_w} px, stride {stride_y}x{stride_x}".format_map(geometry),
        "score": f"{score['decides']} decides, {score['window']} window, local window {score['local_window_px']} px",
        "threshold": opened.threshold if opened.decision else "none yet; run: grd-edge recalibrate",
        "fitted": f"{fit.get('method')}, n = {fit.get('n')}, alpha {fit.get('alpha')}, "
        f"{'certified' if fit.get('certified') else 'uncertified'}"
        if fit
        else "",
        "seal": opened.seal,
        "verified": "every file matches its sha256",
    }
    print_rows(str(bundle), {name: value for name, value in rows.items() if value != ""})

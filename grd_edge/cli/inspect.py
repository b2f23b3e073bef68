"""`grd-edge inspect`: what is in a bundle, and is it whole?"""

from __future__ import annotations

from grd_edge.cli.common import BundlePath, Json, print_json, print_rows


def inspect(bundle: BundlePath, json_: Json = False) -> None:
    """Verify a bundle and describe it."""
    from grd_edge.bundle import read_bundle
    from grd_edge.heads import RECONSTRUCTION

    opened = read_bundle(bundle)
    if json_:
        print_json({"bundle": opened.manifest, "decision": opened.decision})
        return
    manifest, fit = opened.manifest, (opened.decision or {}).get("fit", {})
    geometry, score = manifest["geometry"], manifest["score"]
    how = f"{score['window']} window, local window {score['local_window_px']} px"
    scale = f"shorter side {geometry['scale_px']} px" if geometry["scale_px"] else "native resolution"
    rows = {
        "name": manifest["name"],
        "files": ", ".join(f"{name} ({entry['bytes']:,} bytes)" for name, entry in manifest["files"].items()),
        "engines": ", ".join(f"{engine['target']}-{engine['precision']}" for engine in manifest["engines"]),
        "frames": f"{scale}, {geometry['channels']} channel(s), padding {geometry['padding']}",
        "patches": "{patch_h}x{patch_w} px, stride {stride_y}x{stride_x}".format_map(geometry),
        "score": f"{score['decides']} decides, {how if opened.head == RECONSTRUCTION else 'scored by the graph'}",
        "mask of interest": _coverage(opened.roi),
        "threshold": opened.threshold if opened.decision else "none yet; run: grd-edge recalibrate",
        "regions": "",
        "decision": "",
        "fitted": _fitted(fit),
        "seal": opened.seal,
        "verified": "every file matches its sha256",
    }
    if opened.decision:
        decision = opened.decision
        rows["decision"] = f"k = {decision['k']}, runs agree at {decision['run_agreement']:g}"
        if opened.threshold is None or opened.regions.frame_h is not None:
            rows["threshold"], rows["regions"] = "", _regions(opened)
    print_rows(str(bundle), {name: value for name, value in rows.items() if value != ""})


def _coverage(roi) -> str:
    """How much of the frame is of interest."""
    return "" if roi is None else f"{(roi != 0).mean():.1%} of {roi.shape[0]}x{roi.shape[1]} px"


def _regions(opened) -> str:
    """One line per region: its name, threshold and areas."""
    lines = []
    for region, threshold in zip(opened.regions.regions, opened.thresholds, strict=True):
        areas = ", ".join(f"y={y} x={x} {h}x{w} px" for y, x, h, w in region.areas or ()) or "the whole frame"
        lines.append(f"{region.name}: {threshold:.6g} ({areas})")
    return "\n".join(lines)


def _fitted(fit: dict) -> str:
    """How the thresholds came about."""
    if not fit:
        return ""
    if fit.get("method") == "imported":
        return f"imported from {fit.get('from')}, uncertified, {fit.get('fitted', 'at an unknown time')}"
    if "alpha" in fit:
        how = f"alpha {fit['alpha']}, {'certified' if fit.get('certified') else 'uncertified'}"
    else:
        how = f"{fit.get('objective')} {fit.get('objective_value')}"
    return f"{fit.get('method')}, n = {fit.get('n')}, {how}, {fit.get('fitted', 'at an unknown time')}"

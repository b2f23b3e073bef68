/* fuzz_format.h - the format of docs/bundle.md as values that each key takes and refuses. Written from that page, not
 * from the readers, so that it is an oracle of its own. Data of mutate.c.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_FUZZ_FORMAT_H
#define GRD_FUZZ_FORMAT_H

#include "fuzz_case.h"

/* A value of the templates below, which write it as <name>. Lists are separated by |. */
typedef struct fuzz_slot {
    const char *name;
    char kind; /* i integer, n number, s string, o object, a array, t text that is no value by itself */
    const char *valid;
    const char *also; /* further valid values, when everything else stays */
    const char *bad;  /* values that break the bundle, whatever the rest is */
} fuzz_slot;

#define FUZZ_SHA "\"sha256\": \"@SHA@\", \"bytes\": @BYTES@"
#define FUZZ_ENTRY "{" FUZZ_SHA "}"
#define FUZZ_ENGINE(precision) \
    "{\"target\": \"cpu\", \"precision\": \"" precision "\", \"backend\": \"b\", \"file\": \"models/fp32.onnx\", " \
    "\"format\": \"onnx\", \"fingerprint\": {}}"
/* Breaks every place that takes JSON of any content. */
#define FUZZ_BAD_JSON(open, close) \
    open "NaN" close "|" open "-Infinity" close "|" open "1e400" close "|" open "-1e999" close "|" \
    open "@400*9@" close "|" open "@5000*7@" close "|" open "01" close "|" open "+1" close "|" open ".5" close "|" \
    open "1." close "|" open "0x10" close "|" open "1e" close "|" open "'x'" close "|" open "undefined" close "|" \
    open "True" close "|" open "\"\\ud800\"" close "|" open "\"\\udc00\\ud800\"" close "|" \
    open "\"\\ud800x\"" close "|" open "{\"\\udfff\": 1}" close "|" open "\"\\x41\"" close "|" \
    open "\"\\u12\"" close "|" open "\"\t\"" close "|" open "\"\n\"" close "|" open "\"\x01\"" close "|" \
    open "\"@NUL@\"" close "|" open "@NUL@" close "|" open "\"\xff\"" close "|" open "\"\xc0\xaf\"" close "|" \
    open "\"\xed\xa0\x80\"" close "|" open "\"\xf4\x90\x80\x80\"" close "|" open "\"\xc3\"" close "|" \
    open "\xc2\xa0" "1" close "|" open "{\"a\": 1, \"a\": 1}" close "|" \
    open "[{\"a\": {\"b\": 1, \"\\u0062\": 2}}]" close "|" open "{a: 1}" close "|" open "{\"a\": 1,}" close "|" \
    open "[1,]" close "|" open "[,1]" close "|" open "[1 2]" close "|" open "/**/1" close "|" open "1//\n" close "|" \
    open "@15*[@@15*]@" close "|" open "@40*[@@40*]@" close "|" open "@15*{\"a\":@1@15*}@" close "|" \
    open "@100000*[@" close "|" open "\"@1048576*x@\"" close

static const fuzz_slot kBundleSlots[] = {
    {"prefix", 't', "", " |\n|\t|\r\n", "\xef\xbb\xbf|\xff\xfe|[|{|]|,|x|1|//\n|/**/|#\n|@NUL@|\xc2\xa0|\f|\v|null "},
    {"suffix", 't', "\n", "| |\n\n|\r\n\t", "}|]|,|x|{}|1|//|@NUL@|@NUL@@NUL@x|@NUL@}|\xff|\xef\xbb\xbf|\f|\xc2\xa0"},
    {"schema", 'i', "1", "", "0|-1|2|3|1.0|1e0|true|2147483648|9223372036854775807|9223372036854775808|18446744073709551615"
     "|18446744073709551617|4294967297|@400*9@"},
    {"name", 's', "\"part\"", "\"\\u00e4\"|\"\xc3\xa4\"|\"a b\\n\\u0000\"|\"\\ud83d\\ude00\"|\"\xf0\x9f\x98\x80\"|\"\x7f\"|"
     "\"@4096*x@\"|\"@4096*\xc3\xa4@\"|\"@4096*\\u0000@\"",
     "\"\"|\"@4097*x@\"|\"@4097*\xc3\xa4@\"|\"@9000*x@\"|\"\\ud800\"|\"\xff\"|\"\t\""},
    {"head", 's', "\"reconstruction\"", "\"score_map\"",
     "\"map\"|\"score map\"|\"Reconstruction\"|\"reconstruction \"|\"\""},
    {"more_files", 't', "", "", ", \"models/fp32.onnx\": " FUZZ_ENTRY "|, \"models\": " FUZZ_ENTRY
     "|, \"models/fp32.onnx/x\": " FUZZ_ENTRY "|, \"none.bin\": " FUZZ_ENTRY "|, \"x\": 1|, \"x\": null|, \"x\": {}|, 5"},
    {"sha256", 's', "\"@SHA@\"", "", "\"\"|\"@64*a@\"|\"@64*A@\"|\"@SHA@0\"|\" @SHA@\"|\"@64*g@\"|\"@63*a@\""},
    {"bytes", 'i', "@BYTES@", "", "0|-1|1|@BYTES@0|@BYTES@.0|1@BYTES@|18446744073709551615|99999999999999|4294967296|\"@BYTES@\""},
    {"scale_px", 'i', "null", "1|64|65536", "0|-1|65537|1.5|64.0|\"64\"|2147483648|4294967360|true"},
    {"patch_h", 'i', "64", "12|65|16384", "10|0|-64|11|16385|64.0|6.4e1|4294967360|18446744073709551680|2147483648"},
    {"patch_w", 'i', "64", "12|63|16384", "10|0|-64|11|16385|64.0|6.4e1|4294967360|18446744073709551680|2147483648"},
    {"stride_y", 'i', "12", "1|64", "0|-1|65|12.0|16385|4294967308"},
    {"stride_x", 'i', "12", "1|64", "0|-1|65|12.0|16385|4294967308"},
    {"channels", 'i', "1", "3", "0|2|4|-1|1.0|3.0|true|4294967297"},
    {"padding", 's', "\"error\"", "\"reflect\"", "\"zero\"|\"\"|\"Error\"|\"error \""},
    {"decides", 's', "\"phi\"", "\"phi_local\"", "\"Phi\"|\"\"|\"phi_\"|\"local\""},
    {"window", 's', "\"gaussian\"", "\"box\"", "\"Box\"|\"\"|\"hann\""},
    {"local_window_px", 'i', "21", "1|16384", "0|-1|16385|21.0|4294967317"},
    {"chosen", 'o', "{\"cpu\": \"fp32\"}", "{}|{\"cpu\": \"int8\"}", "{\"cpu\": \"bf16\"}|{\"rtx\": \"fp32\"}|{\"cpu\": 1}|"
     "{\"cpu\": null}|{\"\": \"fp32\"}|{\"cpu\": \"\"}|{\"cpu\": \"fp32\", \"cpu\": \"fp32\"}|{\"cpu\": [\"fp32\"]}|"
     "{\"CPU\": \"fp32\"}"},
    {"tried", 'a', "[]", "[{}]|[{\"a\": [1.5, \"x\", null]}]|[{}, {}]",
     "[1]|[[]]|[null]|[\"\"]|[{}, 1]|" FUZZ_BAD_JSON("[{\"x\": ", "}]")},
    {"why", 's', "\"only one\"", "\"\"|\"\xe2\x82\xac\"", "\"\\ud800\"|\"\xff\""},
    {"more_engines", 't', "", ", " FUZZ_ENGINE("int4") "|@engines:97@",
     "@engines:98@|@engines:3000@|, 5|, {}|, []|, null|, " FUZZ_ENGINE("fp32") "|, " FUZZ_ENGINE("int8")},
    {"target", 's', "\"cpu\"", "\"rtx-4000_a\"|\"@64*a@\"|\"-\"",
     "\"CPU\"|\"\"|\"c pu\"|\"c/pu\"|\"@65*a@\"|\"cp\xc3\xbc\"|\"cpu\\n\"|\"a.b\""},
    {"precision", 's', "\"fp16\"", "\"bf16\"|\"@64*a@\"", "\"fp32\"|\"int8\"|\"INT8\"|\"\"|\"@65*a@\"|\"a b\"|\"int8\\n\"|\"a\\u0000\""},
    {"backend", 's', "\"openvino\"", "\"x9_\"|\"@64*b@\"", "\"../x\"|\"open-vino\"|\"Open\"|\"\"|\"@65*b@\"|\"x\\n\"|\"a.b\""},
    {"file", 's', "\"models/fp32.onnx\"", "\"engines/cpu-int8.bin\"",
     "\"none.bin\"|\"\"|\"./models/fp32.onnx\"|\"models//fp32.onnx\"|\"models\"|\"bundle.json\"|\"models/fp32.onnx\\u0000\""},
    {"format", 's', "\"onnx\"", "\"@64*f@\"|\"_\"", "\"ONNX\"|\"\"|\"@65*f@\"|\"o x\"|\"x\\n\""},
    {"fingerprint", 'o', "{}", "{\"a\": {\"b\": [null, true]}}", FUZZ_BAD_JSON("{\"x\": ", "}")},
    {"provenance", 'o', "{}", "{\"a\": [1e308, -0, 1E-9, 1e-999, \"\\ud83d\\ude00\", {\"\": \"\"}]}|{\"a\": @14*[@@14*]@}|"
     "{\"a\": {\"x\": 1}, \"b\": {\"x\": 1}}|{\"a\": 18446744073709551616}|{\"a\": @300*9@}|{\"a\": \"@60000*x@\"}",
     "{\"x\": \"" GRD_FUZZ_ZEROS "\"}|" FUZZ_BAD_JSON("{\"x\": ", "}")},
    {"seal", 's', "\"" GRD_FUZZ_ZEROS "\"", "", "\"\"|\"0" GRD_FUZZ_ZEROS "\"|\"" GRD_FUZZ_ZEROS "0\"|\"@64*A@\"|\"@64*1@\"|"
     "\"@63*0@\"|\"\\u0031@63*0@\"|\"zero\""},
};

static const char kBundleTemplate[] =
    "<prefix>{\"schema\": <schema>, <roi>\"name\": <name>, \"head\": <head>,\n"
    " \"files\": {\"models/fp32.onnx\": {\"sha256\": <sha256>, \"bytes\": <bytes>},\n"
    "  \"engines/cpu-int8.bin\": {\"sha256\": \"@SHA@\", \"bytes\": @BYTES@}<more_files>},\n"
    " \"geometry\": {\"scale_px\": <scale_px>, \"patch_h\": <patch_h>, \"patch_w\": <patch_w>,\n"
    "  \"stride_y\": <stride_y>, \"stride_x\": <stride_x>, \"channels\": <channels>, \"padding\": <padding>},\n"
    " \"score\": {\"decides\": <decides>, \"window\": <window>, \"local_window_px\": <local_window_px>},\n"
    " \"precision\": {\"chosen\": <chosen>, \"tried\": <tried>, \"why\": <why>},\n"
    " \"engines\": [{\"target\": \"cpu\", \"precision\": \"fp32\", \"backend\": \"openvino\",\n"
    "   \"file\": \"models/fp32.onnx\", \"format\": \"onnx\", \"fingerprint\": {}},\n"
    "  {\"target\": \"cpu\", \"precision\": \"int8\", \"backend\": \"openvino\",\n"
    "   \"file\": \"engines/cpu-int8.bin\", \"format\": \"onnx\", \"fingerprint\": {}},\n"
    "  {\"target\": <target>, \"precision\": <precision>, \"backend\": <backend>, \"file\": <file>,\n"
    "   \"format\": <format>, \"fingerprint\": <fingerprint>}<more_engines>],\n"
    " \"provenance\": <provenance>, \"seal\": <seal>}<suffix>";

static const fuzz_slot kDecisionSlots[] = {
    {"prefix", 't', "", " |\n\t", "\xef\xbb\xbf|[|{|,|x|@NUL@"},
    {"suffix", 't', "\n", "| ", "}|]|x|{}|@NUL@|@NUL@x"},
    {"schema", 'i', "1", "", "0|-1|2|1.0|true|9223372036854775808|4294967297"},
    {"bundle", 's', "\"@BUNDLE@\"", "", "\"\"|\"@64*a@\"|\"@BUNDLE@0\"|\"@63*a@\"|\"@64*A@\"|\"@64*1@\""},
    {"region", 's', "\"frame\"", "\"\xc3\xa4\"|\"a\\n\"|\"@64*x@\"|\"@64*\xc3\xa4@\"",
     "\"\"|\"@65*x@\"|\"@65*\xc3\xa4@\"|\"\\udc00\""},
    {"threshold", 'n', "0.0625", "1|-0.5|0|-0.0|0.10000000149011612|3.4028234663852886e38|-3.4028234663852886E+38|16777216|"
     "1.401298464324817e-45|1e-400|9223372036854775808|9007199254740993",
     "0.1|1e39|3.5e38|1e400|NaN|Infinity|-Infinity|\"0.0625\"|null|true|16777217|[0.0625]|1e-45|@400*9@"},
    {"more_regions", 't', "", ", {\"name\": \"b\", \"threshold\": 1}|@regions:63@",
     "@regions:64@|@regions:3000@|, {\"name\": \"b\"}|, {\"threshold\": 1}|, {\"name\": \"b\", \"threshold\": 1, \"x\": 1}|, 5|, {}|, []|, null|, {\"name\": \"frame\", \"threshold\": 0.0625}"},
    {"k", 'i', "1", "7|2147483647", "0|-1|2147483648|4294967297|1.0|true"},
    {"run_agreement", 'n', "0.7", "1|1.0|0.5000001|10e-1", "0.5|1.0000001|0|-1|null|\"0.7\"|true|2|NaN|1e400|@400*9@"},
    {"fit", 'o', "{\"method\": \"good_only\"}", "{}|{\"a\": [{\"b\": null}]}", FUZZ_BAD_JSON("{\"x\": ", "}")},
    {"seal", 's', "\"" GRD_FUZZ_ZEROS "\"", "", "\"\"|\"" GRD_FUZZ_ZEROS "0\"|\"@64*A@\"|\"@64*1@\"|\"@63*0@\"|\"zero\""},
};

static const char kDecisionTemplate[] =
    "<prefix>{\"schema\": <schema>, \"bundle\": <bundle>,\n"
    " <frame>\"regions\": [{\"name\": <region>, \"threshold\": <threshold><areas>}<more_regions>],\n"
    " \"k\": <k>, \"run_agreement\": <run_agreement>, \"fit\": <fit>, \"seal\": <seal>}<suffix>";

/* What the places <roi>, <frame> and <areas> hold: nothing, or these together. */
#define FUZZ_ROI "\"roi\": \"models/fp32.onnx\", "
#define FUZZ_FRAME "\"frame_px\": [100, 200], "
#define FUZZ_AREAS ", \"areas\": [[0, 0, 100, 200], [5, 7, 1, 1]]"

static const char kMasks[] = "P5\n4 3\n255\nxxxxyyyyzzzz|P5\n1 1\n255\n\xff|P5\n12 1\n255\n\n\n\n\n\n\n\n\n\n\n\n\n";
static const char kBadMasks[] =
    "P5\n4 3\n255\nxxxxyyyyzzz|P5\n4 3\n255\nxxxxyyyyzzzzz|P5\n4 3\n255\n|P2\n1 1\n255\n1|P6\n1 1\n255\nxyz|P5\n0 3\n255\n|"
    "P5\n3 0\n255\n|P5\n1 1\n254\nx|P5\n1 1\n65535\nxy|P5\n1 1\n0\nx|P5\n-1 -1\n255\nx|P5\n99999 0\n255\n|P5\n4294967297 1\n255\nx|"
    "P5\n99999999999999999999 1\n255\nx|P5\n65537 65537\n255\nx|P5\n65536 65536\n255\nx|P5\n1.0 1\n255\nx|P5\n1\n255\nx|model|"
    "P5|P5\n|P5\n1|P5\n1 1|P5\n1 1\n255|P5\n1 1\n25|P5\n1 1\n2555\nx|P5\n+1 1\n255\nx|P5\n0x1 1\n255\nx|p5\n1 1\n255\nx";
static const char kBadRoi[] =
    "\"roi\": \"none.pgm\", |\"roi\": null, |\"roi\": \"models\", |\"roi\": 1, |\"roi\": \"\", |\"roi\": [\"models/fp32.onnx\"], |"
    "\"roi\": \"./models/fp32.onnx\", |\"roi\": \"../b.grdb/models/fp32.onnx\", |" FUZZ_ROI FUZZ_ROI;
static const char kBadFrames[] =
    "|\"frame_px\": null, |\"frame_px\": {}, |\"frame_px\": [], |\"frame_px\": [100], |\"frame_px\": [100, 200, 1], |"
    "\"frame_px\": [0, 200], |\"frame_px\": [100, 0], |\"frame_px\": [-100, 200], |\"frame_px\": [100.0, 200], |"
    "\"frame_px\": [\"100\", 200], |\"frame_px\": [true, 200], |\"frame_px\": [99, 200], |\"frame_px\": [100, 199], |"
    "\"frame_px\": [4294967396, 200], |\"frame_px\": [18446744073709551716, 200], |\"frame_px\": 100, |" FUZZ_FRAME FUZZ_FRAME;
static const char kBadAreas[] =
    "|, \"areas\": []|, \"areas\": null|, \"areas\": {}|, \"areas\": [null]|, \"areas\": [[]]|, \"areas\": [0, 0, 5, 5]|"
    ", \"areas\": [[0, 0, 101, 200]]|, \"areas\": [[0, 0, 100, 201]]|, \"areas\": [[-1, 0, 5, 5]]|, \"areas\": [[0, -1, 5, 5]]|"
    ", \"areas\": [[0, 0, 0, 5]]|, \"areas\": [[0, 0, 5, 0]]|, \"areas\": [[0, 0, -5, 5]]|, \"areas\": [[0, 0, 5]]|"
    ", \"areas\": [[0, 0, 5, 5, 5]]|, \"areas\": [[0.0, 0, 5, 5]]|, \"areas\": [[0, 0, 5, \"5\"]]|, \"areas\": [[true, 0, 5, 5]]|"
    ", \"areas\": [[99, 0, 2, 5]]|, \"areas\": [[100, 0, 1, 5]]|, \"areas\": [[0, 200, 1, 1]]|"
    ", \"areas\": [[2147483647, 0, 2147483647, 5]]|, \"areas\": [[0, 4294967296, 1, 1]]|"
    ", \"areas\": [[9223372036854775807, 0, 9223372036854775807, 5]]|, \"areas\": [[0, 0, 1, 1]@64*, [0, 0, 1, 1]@]|"
    ", \"areas\": [[0, 0, 5, 5], 5]|, \"areas\": [[0, 0, 5, 5], [0, 0, 101, 1]]|" FUZZ_AREAS FUZZ_AREAS;

/* Names that no listed file may have. */
static const char kBadNames[] =
    "../x|/x|./x|x/|a//b|a/../b|.hidden|a/.hidden|a/b/c/d|a b|a\\\\b|\xc3\xa4|\\u0000x|x\\u0000|x\\n|a:b|*|~|bundle.json|"
    "decision.json|..|.|...|/|//|a/./b|\\ud83d\\ude00|%2e%2e/x|a\\/..\\/b|@300*x@|-/../x|a/b/c/../d|$x|x;y";

/* Changes of the folder around a valid description. */
static const char kBadCommands[] =
    "file x|file .hidden|file models/x|file models/fp32.onnx~|file a b|file \xff\xfe|file bundle.json.bak|empty x|folder x|"
    "folder models/x|folder .git|pipe x|pipe models/x|link x\t0|link x\t2|link models/x\t4|link models/self\t5|"
    "remove bundle.json|remove models/fp32.onnx|remove engines/cpu-int8.bin|away bundle.json|away models|away decision.json\n"
    "link decision.json\t1|away bundle.json\nlink bundle.json\t1|away models/fp32.onnx\nlink models/fp32.onnx\t1|"
    "away models\nlink models\t1|away engines\nlink engines\t1|remove models/fp32.onnx\npipe models/fp32.onnx|"
    "remove models/fp32.onnx\nfolder models/fp32.onnx|remove models/fp32.onnx\nlink models/fp32.onnx\t3|"
    "remove decision.json\npipe decision.json|remove decision.json\nfolder decision.json|"
    "remove decision.json\nlink decision.json\t2|remove bundle.json\npipe bundle.json|"
    "remove bundle.json\nfolder bundle.json|remove bundle.json\nlink bundle.json\t2|remove models/fp32.onnx\nlink "
    "models/fp32.onnx\t4|remove bundle.json\nlink bundle.json\t0|remove bundle.json\nlink bundle.json\t3|"
    "remove decision.json\nempty decision.json|remove bundle.json\nempty bundle.json|size models/fp32.onnx\t0|"
    "size models/fp32.onnx\t100000|size bundle.json\t1048577|size decision.json\t1048577|size bundle.json\t1048576";

/* Bytes of the listed files; none of them may matter. */
static const char kModels[] = "model|xy|@@|{}|a longer model that is more than sixty-four bytes long, so that sha256 takes two blocks";

#endif

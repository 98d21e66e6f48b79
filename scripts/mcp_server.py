"""A tool for agents, over stdio (Model Context Protocol): `zoom`, an image and a question to the crop that answers it.

bash scripts/mcp_server.sh --model_path models/grpo_512
"""

import argparse
import base64
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cropvlm.crops import crop_or_full_image  # noqa: E402
from cropvlm.data.images import open_image  # noqa: E402
from cropvlm.runs.cli import ArgumentParser, nonempty, pixels, run  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", type=nonempty, required=True, help="cropper: Hub id or folder")
    parser.add_argument("--longest_edge", type=pixels, default=512, help="pixels at which it sees images (default 512)")
    parser.add_argument("--gpu", type=int, default=0, help="index of the GPU; without one the CPU")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Image
    from mcp.server.mcpserver.exceptions import ToolError

    from cropvlm import Cropper
    from cropvlm.modeling import device_and_dtype

    cropper = Cropper(args.model_path, None, args.longest_edge, *device_and_dtype(args.gpu))
    server = MCPServer("cropvlm")

    @server.tool()
    def zoom(image: str, question: str) -> list:
        """Cut out the part of an image that helps to answer a question, at full resolution.

        image: path of a file, or a data URL in base64. Returns the box, [x1, y1, x2, y2] in percent of width and height
        (the whole image where none was found), and the crop.
        """
        try:
            source = base64.b64decode(image.partition(";base64,")[2]) if image.startswith("data:") else image
            full, file = open_image(source), io.BytesIO()
            (text,) = cropper.texts([full], [question])
        except ValueError as error:  # an image or a question that cannot be read: the agent may ask again
            raise ToolError(str(error)) from error
        crop, is_valid = crop_or_full_image(full, text)
        crop.save(file, "png")
        return [text if is_valid else "[0, 0, 100, 100]", Image(data=file.getvalue(), format="png")]

    server.run("stdio")


if __name__ == "__main__":
    run(main)

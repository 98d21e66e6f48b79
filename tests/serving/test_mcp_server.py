"""The tool for agents, asked by the official client over stdio."""

import base64
import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from processes import REPO

PYTHON = Path(os.environ.get("CROPVLM_MCP_PYTHON", REPO / ".venv/mcp/bin/python3"))  # made by scripts/mcp_server.sh
CLIENT = """
import asyncio, json, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

async def main(command, *images):
    async with stdio_client(StdioServerParameters(command=command[0], args=command[1:])) as streams:
        async with ClientSession(*streams) as session:
            await session.initialize()
            tools = [tool.name for tool in (await session.list_tools()).tools]
            for image in images:
                result = await session.call_tool("zoom", {"image": image, "question": "What is written there?"})
                print(json.dumps([tools, *(part.model_dump(mode="json") for part in result.content)]))

asyncio.run(main(json.loads(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.mark.slow
def test_the_official_client_zooms(tiny_smolvlm, tmp_path):
    if not PYTHON.exists():
        pytest.skip("mcp is not installed (bash scripts/mcp_server.sh --help installs it)")
    image = Image.effect_noise((80, 60), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    server = [PYTHON, REPO / "scripts/mcp_server.py", "--model_path", tiny_smolvlm, "--longest_edge", "64"]
    images = [tmp_path / "image.png", url, tmp_path / "missing.png"]
    call = [PYTHON, "-c", CLIENT, json.dumps(list(map(str, server))), *images]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    by_path, by_url, missing = map(json.loads, done.stdout.splitlines())
    assert by_path == by_url
    assert "no such file" in missing[1]["text"]
    tools, box, crop = by_path
    assert tools == ["zoom"]
    assert box["text"] == "[0, 0, 100, 100]"  # random weights write no valid box
    assert Image.open(io.BytesIO(base64.b64decode(crop["data"]))).convert("RGB") == image
